//! `Flusher`: the thread that syncs under `fsync = "interval"`.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tracing::{error, info};

use super::inner::Inner;

/// Syncs what was written every so often, until it is dropped, and then once more.
#[derive(Debug)]
pub(super) struct Flusher {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Flusher {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub(super) fn start(inner: Arc<Mutex<Inner>>, every: Duration) -> std::io::Result<Self> {
        let (stop, stopped) = channel::<()>();
        let work = move || {
            let mut failing = false;
            loop {
                let ended = stopped.recv_timeout(every) != Err(RecvTimeoutError::Timeout);
                let synced = inner.lock().unwrap_or_else(PoisonError::into_inner).sync();
                match synced {
                    Err(error) if !failing || ended => {
                        failing = true;
                        error!(%error, "failed to sync samples; a power cut may take the latest ones");
                    }
                    Err(_) => {}
                    Ok(()) if failing => {
                        failing = false;
                        info!("samples are synced again");
                    }
                    Ok(()) => {}
                }
                if ended {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("sample-sync".to_owned())
            .spawn(work)?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic there was reported there
        }
    }
}
