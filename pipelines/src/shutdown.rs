//! Signals that end the program.

use tokio::signal::unix::{self, Signal, SignalKind};

/// Waits for SIGINT, SIGTERM, or SIGHUP (a terminal closes, or a service manager wants the settings read
/// again by the next start). A SIGHUP that whoever started us wants ignored, as `nohup` does, stays ignored.
pub async fn signal() {
    let mut terminate = listen(SignalKind::terminate(), "SIGTERM");
    let mut hang_up = match is_ignored(SignalKind::hangup()) {
        true => None,
        false => listen(SignalKind::hangup(), "SIGHUP"),
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        () = arrival(&mut terminate) => {}
        () = arrival(&mut hang_up) => {}
    }
}

fn listen(kind: SignalKind, name: &str) -> Option<Signal> {
    let listening = unix::signal(kind);
    if let Err(error) = &listening {
        tracing::error!(%error, "cannot listen for {name}");
    }
    listening.ok()
}

async fn arrival(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

/// Whether the process ignores a signal, by the mask that Linux shows; where it shows none, it does not.
fn is_ignored(kind: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    ignores(&status, kind.as_raw_value())
}

fn ignores(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn each_of_the_signals_that_end_a_program_ends_the_wait() {
        for name in ["INT", "TERM", "HUP"] {
            let waiting = tokio::spawn(signal());
            tokio::time::sleep(Duration::from_millis(200)).await;
            assert!(!waiting.is_finished());

            let sent = std::process::Command::new("kill")
                .args(["-s", name, &std::process::id().to_string()])
                .status()
                .unwrap();

            assert!(sent.success());
            if name == "HUP" && is_ignored(SignalKind::hangup()) {
                // The tests were started with `nohup`.
                let ended = tokio::time::timeout(Duration::from_millis(300), waiting).await;
                assert!(ended.is_err(), "an ignored SIGHUP ended the wait");
                continue;
            }
            let ended = tokio::time::timeout(Duration::from_secs(10), waiting).await;
            ended.expect(name).unwrap();
        }
    }

    #[test]
    fn a_signal_is_ignored_where_its_bit_is_set() {
        let status = "Name:\tx\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000000\n";
        let hang_up = SignalKind::hangup().as_raw_value();
        let terminate = SignalKind::terminate().as_raw_value();

        assert!(ignores(status, hang_up) && !ignores(status, terminate));
        assert!(!ignores("", hang_up));
    }
}
