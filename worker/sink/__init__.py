"""The sink: keeps the accepted rows in a store of its own and cuts exports from it.

`store` is that store, `consume` fills it, `requests` words what is asked and answered, `cut` brings
the store to a cut once `verdicts` says that all is judged, `plan` says which rows belong into an
export, `spool` and `increment` collect them, `bookmarks` knows what was delivered, `export` carries
a request out, `answers` says how it goes. `election` tells which sink of a pair is the active one,
`active` is its work, `schedule` and `agenda` say when an export is due of itself, `retention` which
ones go; `service` runs it all. The files of an export are written by `worker.exports`.
"""
