"""The proof that nothing accepted is lost: a private system under load, struck again and again, and an exact account.

`plan` says what is sent and which blows fall, from a seed; `rig` is the
system; `load` sends, `blows` strikes; `account` compares what was accepted,
what ran and what Redis holds; `drill` does all of it in order.
"""
