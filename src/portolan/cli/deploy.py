"""`portolan deploy`."""

from __future__ import annotations

from typing import Any

import click

from portolan.cli import options
from portolan.cli.console import Console


@click.command("deploy", short_help="files for KServe, Ray Serve, Triton, Docker")
@click.argument("bundle", type=click.Path(), metavar="BUNDLE")
@click.option(
    "--to",
    multiple=True,
    required=True,
    type=options.Names("platforms", "platform"),
    callback=options.flat,
    metavar="PLATFORM[,PLATFORM...]",
    help="Where it is to run: docker, kserve, ray-serve, triton, web.",
)
@options.out("The folder that gets one folder per platform.  [default: deploy-NAME]")
@click.option("--service", metavar="NAME", help="What the service is called.  [default: made from the bundle's name]")
@click.option(
    "--image", metavar="IMAGE", help="The container image of docker and kserve.  [default: NAME:HASH of the bundle]"
)
@options.replicas
@click.option(
    "--storage-uri", metavar="URI", help="For kserve: fetch the bundle from here.  [default: the image holds it]"
)
@click.option(
    "--scale-on",
    type=click.Choice(["cpu", "concurrency", "qps"]),
    help="For kserve: add replicas for this; all but cpu need Knative.  [default: cpu]",
)
@options.writes
@options.common
@click.pass_obj
def command(console: Console, /, bundle: str, dry_run: bool, **rest: Any) -> int:
    """Write files for KServe, Ray Serve, Triton, Docker that run a bundle there.

    Resources, batching, scaling and probes are filled in from what was measured; the files say what was not.
    Nothing of the bundle is run.
    """
    from portolan import api
    from portolan.cli import show

    data = api.deploy(bundle, dry_run=dry_run, **rest).to_json()
    return console.answer(data, lambda: show.deployment(data, dry_run=dry_run))
