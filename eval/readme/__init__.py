"""What the README says of reports: the lines between its marks."""
