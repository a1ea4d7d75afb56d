"""`clockwork dashboard`: a live view of a cluster in a browser.

follower.py keeps the history of a controller that is read repeatedly. picture.py computes the columns to
draw, page.py draws them with Bokeh, and server.py serves the page. Only page.py, figures.py and server.py
need Bokeh.
"""
