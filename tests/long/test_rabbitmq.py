"""The fleet's side as it is meant to be run: a three-node RabbitMQ with quorum queues, octogate-ingest, PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from sdk.ingest import Account, Ingest
from sdk.ingest.ledger import whole
from tests.integration.harness import COUNTS, config, daemon, node, stored, until
from tests.integration.postgres import Postgres, postgres
from tests.integration.rabbitmq import Cluster, balancer, rabbitmq
from tests.integration.test_ingest_postgres import fetch, next_seq, until_taken


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with rabbitmq() as made:
        yield made


@pytest.fixture
def server() -> Iterator[Postgres]:
    with postgres() as made:
        yield made


@pytest.mark.timeout(900)
def test_a_cluster_whose_nodes_are_killed_in_turn_loses_nothing(
    cluster: Cluster, server: Postgres, tmp_path: Path
) -> None:
    """Gateway -> RabbitMQ -> consumer -> PostgreSQL: 0 lost, 0 doubled, 0 inversions."""

    async def scenario() -> None:
        said: list[str] = []
        async with balancer([node.mqtt for node in cluster.nodes]) as port:
            account = Account(port=port, session="ingest-1")
            async with (
                Ingest.open(postgres=server.dsn, account=account, say=said.append) as ingest,
                node(tmp_path),
                daemon(tmp_path, config(tmp_path, port)) as gateway,
            ):
                await until_taken(server.dsn, 300)
                kinds = await asyncio.to_thread(cluster.ask, "list_queues", "name", "type", "durable")
                assert any("ingest-1" in line and "quorum" in line for line in kinds.splitlines()), kinds
                for number in range(3):  # among them those that the gateway and the consumer are connected to
                    await asyncio.to_thread(cluster.nodes[number].kill)
                    await until_taken(server.dsn, await next_seq(server.dsn) + 400)
                    await asyncio.to_thread(cluster.until_missed, number)
                    cluster.nodes[number].start()
                    await asyncio.to_thread(cluster.nodes[number].until_up)
                    await asyncio.to_thread(cluster.until_agreed)
                reconnects = (await gateway.status()).uplink.reconnects
                await gateway.end()
                on_disk = stored(gateway.spool)[COUNTS]
                await gateway.start()
                await until_taken(server.dsn, on_disk)
                assert whole(await ingest.table.sink.ledger(count=True))
                await until(lambda: not ingest.trouble, "the store is well")
                print(
                    f"{on_disk} readings, {reconnects} reconnects of the gateway, {ingest.broker.ups} of the consumer"
                )
                print(ingest.counts, said)
                assert ingest.counts.missing == ingest.counts.refused == 0
                assert reconnects + ingest.broker.ups > 1  # somebody was hit
        kept = await fetch(server.dsn, f'SELECT seq, n FROM octogate_streams."{COUNTS}" ORDER BY seq')
        assert [seq for seq, _ in kept] == [n for _, n in kept] == list(range(len(kept)))
        assert len(kept) >= on_disk > 1500

    asyncio.run(scenario())
