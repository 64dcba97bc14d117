"""Each site's number is masked. Only the sum of all can be read."""
