"""`gliotrail.track` within Ray Train, Ray Tune and trainers of others: a file each."""
