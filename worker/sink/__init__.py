"""The sink: stores the accepted rows and cuts exports from its store.

* `service` runs all parts of the sink.
* `store` holds the rows; `store.consume` reads them from the accepted topics.
* `requests` defines requests and announcements.
* `answers` announces how a request goes; `export` carries the request out, and `attempt` makes
  the export.
* `judged` waits until the inputs are judged; `awaited` tells how far they are.
* `selection.cut` brings the store to a cut, and `selection.plan` picks the rows of an export.
  `selection.spool` and `selection.increment` write them to files. `selection.bookmarks` knows the
  delivered rows.
* `election` tells which sink of a pair is the leader; `leader` does its work.
* `schedule` and `agenda` tell when a scheduled export is due.
* `retention` picks the exports to remove; `upkeep` removes them, and sweeps leftovers.
* `reports` feeds metrics and health.

`worker.exports` writes the files of an export.
"""
