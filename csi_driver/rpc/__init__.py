"""The protocol edge: requests parsed, answers built, errors and limits in one place each."""
