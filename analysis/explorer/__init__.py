"""A lake in the browser, and the same views as one file: overview, tags, neurons, sentences, comparisons, search.

`shelf` holds the lakes, the modules named after views turn questions into plain data, `render` turns these into HTML by
templates that escape everything, `app` answers requests and `guard` decides which ones. Nothing here writes to a lake.
"""
