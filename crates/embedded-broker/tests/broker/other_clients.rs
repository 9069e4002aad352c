//! Clients that are not ours: whatever speaks Kafka must find its way.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};

use crate::support::{Target, blocking, say, skip, unique};

/// Runs a program; `None` when there is no such program here.
async fn run(mut command: Command, input: &'static str) -> Result<Option<Output>> {
    blocking(move || {
        use std::io::Write;
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = match command.spawn() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            child => child?,
        };
        child
            .stdin
            .take()
            .context("the input is piped")?
            .write_all(input.as_bytes())?;
        Ok(Some(child.wait_with_output()?))
    })
    .await
}

fn text(output: &Output) -> Result<String> {
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {errors}", output.status);
    Ok(String::from_utf8(output.stdout.clone())?)
}

pub(crate) async fn kcat(target: Target) -> Result<()> {
    let topic = target.topic("kcat", 1).await?;
    let kcat = |arguments: &[&str]| {
        let mut command = Command::new("timeout");
        command
            .args([
                "40",
                "kcat",
                "-b",
                &target.bootstrap,
                "-X",
                "broker.address.family=v4",
            ])
            .args(arguments);
        command
    };
    if run(Command::new("kcat"), "").await?.is_none() {
        skip(
            &format!("{:?}::kcat_reads_what_kcat_wrote", target.kind),
            "kcat is not installed",
        );
        return Ok(());
    }

    let headers = ["-H", "ce_instruction=Transcribe the speech.", "-K", ":"];
    let written = run(
        kcat(&[&["-P", "-t", &topic, "-z", "lz4"], &headers[..]].concat()),
        "a:one\nb:two\nc:three\n",
    );
    text(&written.await?.context("kcat is here")?)?;
    let format = "%o %k %s %h\\n";
    let read = run(
        kcat(&["-C", "-t", &topic, "-o", "beginning", "-e", "-q", "-f", format]),
        "",
    )
    .await?;
    let group = unique("kcat-group");
    let commits = ["-X", "auto.offset.reset=earliest", "-e", "-q", "-f", "%s\\n"];
    let as_member = run(kcat(&[&commits[..], &["-G", &group, &topic]].concat()), "").await?;
    let listing = run(kcat(&["-L", "-t", &topic]), "").await?;
    let last = format!("{topic}:0:-1");
    let queried = run(kcat(&["-Q", "-t", &last]), "").await?;

    let header = "ce_instruction=Transcribe the speech.";
    let expected = format!("0 a one {header}\n1 b two {header}\n2 c three {header}\n");
    let read = text(&read.context("kcat is here")?)?;
    ensure!(read == expected, "{read}");
    let as_member = text(&as_member.context("kcat is here")?)?;
    ensure!(as_member == "one\ntwo\nthree\n", "as a group member: {as_member}");
    let listing = text(&listing.context("kcat is here")?)?;
    ensure!(
        listing.contains(&format!("topic \"{topic}\" with 1 partitions")),
        "{listing}"
    );
    let queried = text(&queried.context("kcat is here")?)?;
    ensure!(queried.contains("offset 3"), "{queried}");
    Ok(())
}

pub(crate) async fn python(target: Target) -> Result<()> {
    let python = std::env::var("SPEECHVERSE_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let mut probe = Command::new(&python);
    probe.args(["-c", "import confluent_kafka"]);
    let present = run(probe, "")
        .await?
        .is_some_and(|output| output.status.success());
    if !present {
        let check = format!("{:?}::python_reads_what_python_wrote", target.kind);
        skip(
            &check,
            "no confluent-kafka for the Python that SPEECHVERSE_PYTHON names (default python3)",
        );
        return Ok(());
    }

    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/confluent_roundtrip.py");
    let mut command = Command::new(&python);
    command.arg(&script).arg(&target.bootstrap);
    let output = run(command, "").await?.context("Python was here a moment ago")?;

    let printed = text(&output)?;
    ensure!(printed.contains("\"records\": 100"), "{printed}");
    say(&format!(
        "confluent-kafka on {:?}: {}",
        target.kind,
        printed.trim()
    ));
    Ok(())
}
