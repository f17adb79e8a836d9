"""Generated parts of the documentation: reference pages, diagrams, plots and terminal screens."""
