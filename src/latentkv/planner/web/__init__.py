"""The planner as one page of HTML: its data computed here, its sums in the reader's browser, nothing fetched."""
