"""How a scan is segmented: network, loss, measures, training loop, inference. torch only."""
