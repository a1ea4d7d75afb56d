"""`clockwork dashboard`: a cluster as it goes, in a browser.

follower.py keeps the history of a controller that is read again and again, picture.py computes what is drawn of it, page.py
draws it with Bokeh, and server.py serves it. Only the last two need Bokeh.
"""
