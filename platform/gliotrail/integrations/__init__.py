"""`gliotrail.track` within Ray Train, Ray Tune and other libraries' trainers: a file each."""
