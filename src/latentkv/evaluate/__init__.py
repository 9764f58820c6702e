"""What a choice costs in quality, measured on a real text through the model as it is served."""
