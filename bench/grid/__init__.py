"""What is asked: the schema of a grid, how its YAML is read and checked, and the cells it stands for."""
