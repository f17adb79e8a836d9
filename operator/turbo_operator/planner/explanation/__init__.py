"""Why a plan was chosen, and why other candidates were rejected."""
