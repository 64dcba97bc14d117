"""Flower's Control API for one person: what `flwr run`, `ls`, `log`, `stop` and `pull` speak.

It runs beside the console and hands every question to the console's daemon (`bridge/flare/console/`). So a
run is a FLARE job under that person's identity, and FLARE decides what the person may do.

    waiter.py        holds the port while nobody asks, in little memory, and starts the server
    __main__.py      the server
    app.py           the HTTP side: who may ask, how much may come, how errors look
    calls.py         the calls, by their names
    runs.py          jobs, sites and the federation as Flower's messages
    downloads.py     links to results
    access.py        tokens and logins
    certificate.py   the server's certificate
"""
