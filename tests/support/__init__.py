"""What several test files share: the comparer, hostile inputs and the float64 reference."""
