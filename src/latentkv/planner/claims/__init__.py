"""The public numbers about MLA as data: who says them, under which conditions they hold, and what they come to."""
