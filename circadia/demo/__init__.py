"""The product's main job in a few minutes: a small model reads, is asked, corrected, sleeps, forgets, and goes back.

`facts.py` what it reads, `measure.py` what is asked and the arms beside it, `story.py` the run, `page.py` the page.
"""
