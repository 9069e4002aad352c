//! The start: one process at a time, and the index from what is on disk.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::warn;

use super::error::StoreError;
use super::index::{Found, Index};
use super::inner::Inner;
use super::outcome::OpenReport;
use super::segment::{self, Appender, Scan};
use crate::store::config::StoreConfig;

/// Opens the folder and reads every segment.
pub(super) fn open(config: &StoreConfig) -> Result<(Inner, OpenReport), StoreError> {
    std::fs::create_dir_all(&config.dir).map_err(StoreError::io("create", &config.dir))?;
    let lock = lock(&config.dir)?;
    remove_unfinished(&config.dir)?;
    let mut report = OpenReport::default();
    // The last segment of each task is the one that a crash may have torn, and the one to go on with.
    let mut last: HashMap<Arc<str>, Scan> = HashMap::new();
    let mut next_id = 0;
    let index = Index::read(&config.dir, &mut |id, path, found| {
        next_id = next_id.max(id + 1);
        let (task, scan) = match found {
            Found::Segment(task, scan) => (task, scan),
            Found::Empty(scan) => {
                report.torn_bytes += scan.tail_bytes;
                scan.file.evict(); // a crash came before its first record was whole
                return Ok(());
            }
            Found::Unreadable => return set_aside(path, &mut report),
        };
        if scan.damaged > 0 {
            warn!(path = %path.display(), stretches = scan.damaged, "damaged records are skipped");
            report.damaged += scan.damaged;
        }
        if let Some(closed) = last.insert(task, scan)
            && closed.tail_bytes > 0
        {
            warn!(path = %closed.file.path.display(), bytes = closed.tail_bytes, "the end of a closed segment is damaged");
            report.damaged += 1;
        }
        Ok(())
    })?;
    let mut inner = Inner {
        config: config.clone(),
        _lock: lock,
        index,
        active: HashMap::new(),
        next_id,
        evicted: Vec::new(),
    };
    for (task, scan) in last {
        inner.go_on_with(&task, &scan, &mut report)?;
    }
    inner.enforce_bytes(None);
    report.segments = inner.index.segments.len();
    report.samples = inner.index.places.len();
    Ok((inner, report))
}

impl Inner {
    /// Cuts off what a crash tore, and goes on writing where the task's last segment ends.
    fn go_on_with(
        &mut self,
        task: &Arc<str>,
        scan: &Scan,
        report: &mut OpenReport,
    ) -> Result<(), StoreError> {
        if !scan.header_is_whole {
            return Ok(()); // readable, but not to be written any more
        }
        if scan.tail_bytes > 0 {
            warn!(
                path = %scan.file.path.display(), bytes = scan.tail_bytes,
                "a crash tore the end of a segment; it is cut off"
            );
            report.torn_bytes += scan.tail_bytes;
        }
        let appender = Appender::reopen(scan)?;
        if let Some(segment) = self.index.segments.get_mut(&scan.file.id) {
            segment.bytes = appender.bytes();
        }
        self.active.insert(task.clone(), (scan.file.id, appender));
        self.close_if_full(task);
        self.enforce_quota(task);
        Ok(())
    }
}

/// Removes what was being written to take the place of a segment when a crash came.
fn remove_unfinished(dir: &Path) -> Result<(), StoreError> {
    for file in std::fs::read_dir(dir).map_err(StoreError::io("read", dir))? {
        let path = file.map_err(StoreError::io("read", dir))?.path();
        if segment::is_unfinished(&path) {
            std::fs::remove_file(&path).map_err(StoreError::io("delete", &path))?;
        }
    }
    Ok(())
}

/// Longest wait for whoever still holds the lock.
const LOCK_WAIT: Duration = Duration::from_secs(2);

/// Makes this process the only one that has the store open.
fn lock(dir: &Path) -> Result<File, StoreError> {
    let path = dir.join("lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(StoreError::io("open", &path))?;
    let mut locked = file.try_lock();
    // A process that just ended, or a child that was forked and has not yet become another program, holds the
    // lock for a moment longer.
    let deadline = Instant::now() + LOCK_WAIT;
    while matches!(locked, Err(TryLockError::WouldBlock)) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
        locked = file.try_lock();
    }
    match locked {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = (&file).take(100).read_to_string(&mut holder); // only for the message
            let holder = holder.trim().to_owned();
            return Err(StoreError::Locked {
                dir: dir.to_owned(),
                holder,
            });
        }
        Err(TryLockError::Error(source)) => return Err(StoreError::io("lock", &path)(source)),
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "process {}", std::process::id()))
        .map_err(StoreError::io("write to", &path))?;
    Ok(file)
}

/// Puts a file away in which nothing can be read; an unfinished header is deleted.
fn set_aside(path: &Path, report: &mut OpenReport) -> Result<(), StoreError> {
    let bytes = std::fs::metadata(path)
        .map_err(StoreError::io("read", path))?
        .len();
    if bytes <= segment::HEADER_BYTES as u64 {
        report.torn_bytes += bytes;
        return std::fs::remove_file(path).map_err(StoreError::io("delete", path));
    }
    report.unreadable += 1;
    let aside = path.with_extension("segment.damaged");
    warn!(path = %path.display(), aside = %aside.display(), "nothing in this segment can be read; it is put aside");
    std::fs::rename(path, &aside).map_err(StoreError::io("rename", path))
}
