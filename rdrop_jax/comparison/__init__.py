"""Whether R-Drop helps: equal budgets, choice on validation, fresh seeds, intervals."""
