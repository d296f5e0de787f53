"""`gliotrail.track` within trainers of others: a file each."""
