"""The tables of the consumer's SQLite file; one entry a version, never changed once it was released."""

from __future__ import annotations

MIGRATIONS = (
    # as the first version made them, which counted no versions
    """
    CREATE TABLE IF NOT EXISTS stream (
        id INTEGER PRIMARY KEY,
        gateway TEXT NOT NULL,
        epoch TEXT NOT NULL,
        stream TEXT NOT NULL,
        kind TEXT NOT NULL,
        channels TEXT NOT NULL,
        next_seq INTEGER NOT NULL DEFAULT 0,
        UNIQUE (gateway, epoch, stream)
    );
    CREATE TABLE IF NOT EXISTS reading (
        stream INTEGER NOT NULL REFERENCES stream (id),
        seq INTEGER NOT NULL,
        mono_ns INTEGER,
        wall_ns INTEGER,
        value TEXT NOT NULL,
        PRIMARY KEY (stream, seq)
    ) WITHOUT ROWID
    """,
    # span: the ledger; parked: came too early; shape: which channels a run of a stream has
    """
    ALTER TABLE stream ADD COLUMN span_first INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE stream ADD COLUMN span_tag TEXT NOT NULL DEFAULT '';
    CREATE TABLE gateway (
        name TEXT PRIMARY KEY,
        epoch TEXT NOT NULL,
        session TEXT NOT NULL DEFAULT '0',
        asks INTEGER NOT NULL DEFAULT 0,
        asked_at REAL NOT NULL DEFAULT 0
    );
    CREATE TABLE span (
        stream INTEGER NOT NULL,
        seq_first INTEGER NOT NULL,
        seq_end INTEGER NOT NULL,
        state TEXT NOT NULL,
        boot TEXT NOT NULL,
        why TEXT NOT NULL,
        when_ns INTEGER,
        PRIMARY KEY (stream, seq_first)
    ) WITHOUT ROWID;
    CREATE TABLE parked (
        stream INTEGER NOT NULL,
        seq_first INTEGER NOT NULL,
        n INTEGER NOT NULL,
        seen INTEGER NOT NULL DEFAULT 1,
        parked_at REAL NOT NULL,
        blob BLOB NOT NULL,
        PRIMARY KEY (stream, seq_first)
    );
    CREATE TABLE shape (
        stream INTEGER NOT NULL,
        seq_first INTEGER NOT NULL,
        seq_end INTEGER NOT NULL,
        channels TEXT NOT NULL,
        PRIMARY KEY (stream, seq_first)
    );
    CREATE TABLE view (name TEXT PRIMARY KEY, stream TEXT NOT NULL, channels TEXT NOT NULL);
    CREATE TABLE hook (
        hook TEXT NOT NULL, stream INTEGER NOT NULL, next_seq INTEGER NOT NULL, PRIMARY KEY (hook, stream)
    );
    INSERT INTO gateway (name, epoch) SELECT gateway, epoch FROM stream WHERE id IN
        (SELECT max(id) FROM stream GROUP BY gateway);
    INSERT INTO span SELECT id, 0, next_seq, 'taken', '', '', NULL FROM stream WHERE next_seq > 0;
    INSERT INTO shape SELECT id, 0, 9223372036854775807, channels FROM stream WHERE channels <> '';
    CREATE VIEW v_event AS SELECT s.gateway, s.epoch, s.stream, r.seq,
        json_extract(r.value, '$.name') AS name, json_extract(r.value, '$.origin') AS origin,
        json_extract(r.value, '$.state') AS state, json_extract(r.value, '$.severity') AS severity,
        json_extract(r.value, '$.stamp.wall_ns') AS wall_ns, json_extract(r.value, '$.message') AS message,
        json_extract(r.value, '$.detail') AS detail
        FROM stream s JOIN reading r ON r.stream = s.id WHERE s.kind = 'events' AND json_valid(r.value);
    CREATE VIEW v_inference AS SELECT s.gateway, s.epoch, s.stream, r.seq,
        json_extract(r.value, '$.pipeline') AS pipeline, json_extract(r.value, '$.model') AS model,
        json_extract(r.value, '$.bundle') AS bundle, json_extract(r.value, '$.backend') AS backend,
        json_extract(r.value, '$.stamp.wall_ns') AS wall_ns, json_extract(r.value, '$.took_us') AS took_us,
        json_extract(r.value, '$.result.label') AS label, json_extract(r.value, '$.result.score') AS score,
        json_extract(r.value, '$.result') AS result
        FROM stream s JOIN reading r ON r.stream = s.id WHERE s.kind = 'inferences' AND json_valid(r.value);
    INSERT INTO view VALUES ('v_event', '', ''), ('v_inference', '', '')
    """,
    # boot: how far UTC is from the monotonic time of a gateway's boot; undated: rows that wait for a better word of it
    """
    CREATE TABLE boot (
        gateway TEXT NOT NULL,
        boot TEXT NOT NULL,
        offset_ns INTEGER NOT NULL,
        error_ns INTEGER NOT NULL,
        trust INTEGER NOT NULL,
        PRIMARY KEY (gateway, boot)
    );
    CREATE TABLE undated (
        stream INTEGER NOT NULL,
        trust INTEGER NOT NULL,
        seq_first INTEGER NOT NULL,
        seq_end INTEGER NOT NULL,
        boot TEXT NOT NULL,
        PRIMARY KEY (stream, trust, seq_first)
    );
    DROP VIEW v_event;
    DROP VIEW v_inference;
    CREATE VIEW v_event AS SELECT s.gateway, s.epoch, s.stream, r.seq,
        json_extract(r.value, '$.name') AS name, json_extract(r.value, '$.origin') AS origin,
        json_extract(r.value, '$.state') AS state, json_extract(r.value, '$.severity') AS severity,
        coalesce(r.wall_ns, json_extract(r.value, '$.stamp.wall_ns')) AS wall_ns,
        json_extract(r.value, '$.message') AS message, json_extract(r.value, '$.detail') AS detail
        FROM stream s JOIN reading r ON r.stream = s.id WHERE s.kind = 'events' AND json_valid(r.value);
    CREATE VIEW v_inference AS SELECT s.gateway, s.epoch, s.stream, r.seq,
        json_extract(r.value, '$.pipeline') AS pipeline, json_extract(r.value, '$.model') AS model,
        json_extract(r.value, '$.bundle') AS bundle, json_extract(r.value, '$.backend') AS backend,
        coalesce(r.wall_ns, json_extract(r.value, '$.stamp.wall_ns')) AS wall_ns,
        json_extract(r.value, '$.took_us') AS took_us,
        json_extract(r.value, '$.result.label') AS label, json_extract(r.value, '$.result.score') AS score,
        json_extract(r.value, '$.result') AS result
        FROM stream s JOIN reading r ON r.stream = s.id WHERE s.kind = 'inferences' AND json_valid(r.value)
    """,
)
