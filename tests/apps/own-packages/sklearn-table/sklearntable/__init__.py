"""Each site fits a line to a table in its working directory, and the lines are averaged."""
