"""Self-distillation: the model teaches its own drafter, from its own answers to a domain's prompts.

prompts -> answers of the served model -> its hidden states, computed anew whenever they are needed -> heads
-> evaluation on prompts that were held out -> an artefact (`drafters.heads`) with its record and a report.
"""
