"""Changes of a run, as frozen values: at a site and at a head's attention (`edits`), with a look at the call first
(`calibrate`), by a function of the user's own (`functions`), tokens routed to heads (`route`), and where in a model
they are put (`placing`)."""
