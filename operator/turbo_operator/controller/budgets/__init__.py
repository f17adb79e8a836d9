"""TurboBudgets: what is taken of them, decided in memory and shown in their status."""
