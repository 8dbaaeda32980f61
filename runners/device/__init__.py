"""What runners share whose steps run from state on the device: that state, sampling, graphs, results."""
