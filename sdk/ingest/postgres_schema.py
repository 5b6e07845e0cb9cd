"""The tables of the consumer's PostgreSQL database; one entry a version, never changed once it was released.

`octogate` holds tables, `octogate_streams` a view per stream with a typed column per channel. Readings of the same
channels share a table, `octogate.reading_<id of their shape>`, whatever gateways and streams they come from.
"""

from __future__ import annotations

MIGRATIONS = (
    """
    CREATE TABLE octogate.gateway (
        name text PRIMARY KEY,
        epoch text NOT NULL,
        session text NOT NULL DEFAULT '0',
        asks integer NOT NULL DEFAULT 0,
        asked_at timestamptz NOT NULL DEFAULT '-infinity'
    );
    CREATE TABLE octogate.stream (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        gateway text NOT NULL,
        epoch text NOT NULL,
        stream text NOT NULL,
        kind text NOT NULL,
        next_seq bigint NOT NULL DEFAULT 0,
        span_first bigint NOT NULL DEFAULT 0,
        span_tag text NOT NULL DEFAULT '',
        UNIQUE (gateway, epoch, stream)
    ) WITH (fillfactor = 50);
    CREATE TABLE octogate.span (
        stream bigint NOT NULL,
        seq_first bigint NOT NULL,
        seq_end bigint NOT NULL,
        state text NOT NULL,
        boot text NOT NULL,
        why text NOT NULL,
        when_ns bigint,
        PRIMARY KEY (stream, seq_first)
    ) WITH (fillfactor = 50);
    CREATE TABLE octogate.parked (
        stream bigint NOT NULL,
        seq_first bigint NOT NULL,
        n bigint NOT NULL,
        seen integer NOT NULL DEFAULT 1,
        parked_at timestamptz NOT NULL DEFAULT clock_timestamp(),
        blob bytea NOT NULL,
        PRIMARY KEY (stream, seq_first)
    );
    CREATE TABLE octogate.shape (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        spec text NOT NULL UNIQUE
    );
    CREATE TABLE octogate.view (name text PRIMARY KEY, stream text NOT NULL, shape bigint NOT NULL);
    CREATE TABLE octogate.event (
        stream bigint NOT NULL,
        seq bigint NOT NULL,
        at timestamptz,
        mono_ns bigint,
        boot text,
        name text,
        origin text,
        state text,
        severity text,
        message text,
        detail jsonb,
        value text NOT NULL,
        PRIMARY KEY (stream, seq)
    );
    CREATE TABLE octogate.inference (
        stream bigint NOT NULL,
        seq bigint NOT NULL,
        at timestamptz,
        mono_ns bigint,
        boot text,
        model text,
        bundle text,
        backend text,
        took_us bigint,
        input_seq bigint,
        label text,
        score double precision,
        result jsonb,
        value text NOT NULL,
        PRIMARY KEY (stream, seq)
    );
    CREATE TABLE octogate.process (id text PRIMARY KEY, beat timestamptz NOT NULL);
    CREATE TABLE octogate.hook (
        hook text NOT NULL, stream bigint NOT NULL, next_seq bigint NOT NULL, PRIMARY KEY (hook, stream)
    )
    """,
    # boot: how far UTC is from the monotonic time of a gateway's boot; undated: rows that wait for a better word of it
    """
    CREATE TABLE octogate.boot (
        gateway text NOT NULL,
        boot text NOT NULL,
        offset_ns bigint NOT NULL,
        error_ns bigint NOT NULL,
        trust smallint NOT NULL,
        PRIMARY KEY (gateway, boot)
    );
    CREATE TABLE octogate.undated (
        stream bigint NOT NULL,
        trust smallint NOT NULL,
        seq_first bigint NOT NULL,
        seq_end bigint NOT NULL,
        boot text NOT NULL,
        PRIMARY KEY (stream, trust, seq_first)
    ) WITH (fillfactor = 50)
    """,
)
