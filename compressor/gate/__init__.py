"""The release gate: budgets, verdicts, and the comparison with the last release."""
