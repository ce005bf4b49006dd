"""The operator: it enters annotated pods in the book, and strikes out those that are gone."""
