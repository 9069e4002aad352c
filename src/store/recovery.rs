//! The start: one process at a time, and the index from what is on disk.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::warn;

use super::error::StoreError;
use super::inner::{Inner, Segment, index_entry};
use super::outcome::OpenReport;
use super::sample::{ClaimWritten, ContentHash, Entry};
use super::segment::{self, Appender, Scan};
use super::snapshot::IndexEntry;
use crate::store::config::StoreConfig;

/// Opens the folder and reads every segment.
pub(super) fn open(config: &StoreConfig) -> Result<(Inner, OpenReport), StoreError> {
    std::fs::create_dir_all(&config.dir).map_err(StoreError::io("create", &config.dir))?;
    let mut inner = Inner {
        config: config.clone(),
        _lock: lock(&config.dir)?,
        segments: BTreeMap::new(),
        active: HashMap::new(),
        places: HashMap::new(),
        sides: HashMap::new(),
        topics: HashMap::new(),
        claims: HashMap::new(),
        next_id: 0,
    };
    let mut report = OpenReport::default();
    // The last segment of each task is the one that a crash may have torn, and the one to go on with.
    let mut last: HashMap<Arc<str>, Scan> = HashMap::new();
    let mut claims = Vec::new();
    for (id, path) in segment_paths(&config.dir)? {
        inner.next_id = inner.next_id.max(id + 1);
        let Some((task, scan)) = inner.read_segment(id, &path, &mut claims, &mut report)? else {
            continue;
        };
        if let Some(closed) = last.insert(task, scan)
            && closed.tail_bytes > 0
        {
            warn!(path = %closed.file.path.display(), bytes = closed.tail_bytes, "the end of a closed segment is damaged");
            report.damaged += 1;
        }
    }
    // All claims of a question are in segments of one task, so they are in order. The sample that one is
    // about may be in a segment of another task, which is why they come after all samples.
    for (content, claim) in claims {
        inner.claim(content, claim);
    }
    for (task, scan) in last {
        inner.go_on_with(&task, &scan, &mut report)?;
    }
    inner.enforce_bytes(None);
    report.segments = inner.segments.len();
    report.samples = inner.places.len();
    Ok((inner, report))
}

impl Inner {
    /// Takes what a segment holds into the index; `None` when there is nothing in it.
    fn read_segment(
        &mut self,
        id: u64,
        path: &Path,
        claims: &mut Vec<(ContentHash, ClaimWritten)>,
        report: &mut OpenReport,
    ) -> Result<Option<(Arc<str>, Scan)>, StoreError> {
        let mut task: Option<Arc<str>> = None;
        let mut entries: Vec<IndexEntry> = Vec::new();
        let mut withdrawn = Vec::new();
        let scan = segment::scan(path, id, |place, entry| match entry {
            Entry::Withdrawn { content, task: of } => {
                task.get_or_insert_with(|| of.as_str().into());
                withdrawn.push(ContentHash(content));
            }
            Entry::Claimed {
                content,
                task: of,
                claim,
            } => {
                task.get_or_insert_with(|| of.as_str().into());
                claims.push((ContentHash(content), *claim));
            }
            sample => {
                let Some(asked) = sample.into_sample() else { return };
                task.get_or_insert_with(|| asked.sample.task.as_str().into());
                claims.push((ContentHash(asked.sample.content), asked.claim()));
                entries.push(index_entry(&mut self.topics, place, &asked));
            }
        })?;
        let Some(scan) = scan else {
            set_aside(path, report)?;
            return Ok(None);
        };
        if scan.damaged > 0 {
            warn!(path = %path.display(), stretches = scan.damaged, "damaged records are skipped");
            report.damaged += scan.damaged;
        }
        let Some(task) = task else {
            report.torn_bytes += scan.tail_bytes;
            scan.file.evict(); // a crash came before its first record was whole
            return Ok(None);
        };
        let mut kept = Vec::with_capacity(entries.len());
        for entry in entries {
            if self.places.contains_key(&entry.content) {
                continue; // written again after an error that had not undone it
            }
            self.places.insert(entry.content, (id, kept.len()));
            self.sides.entry(entry.recording).or_insert((entry.split, 0)).1 += 1;
            kept.push(entry);
        }
        let segment = Segment {
            task: task.clone(),
            file: scan.file.clone(),
            entries: Arc::new(kept),
            bytes: scan.end + scan.tail_bytes,
        };
        self.segments.insert(id, segment);
        for content in withdrawn {
            self.mark_withdrawn(content);
        }
        Ok(Some((task, scan)))
    }

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
        if let Some(segment) = self.segments.get_mut(&scan.file.id) {
            segment.bytes = appender.bytes();
        }
        self.active.insert(task.clone(), (scan.file.id, appender));
        self.close_if_full(task);
        self.enforce_quota(task);
        Ok(())
    }
}

/// Segment files of the folder, oldest first.
fn segment_paths(dir: &Path) -> Result<Vec<(u64, PathBuf)>, StoreError> {
    let mut paths = Vec::new();
    for file in std::fs::read_dir(dir).map_err(StoreError::io("read", dir))? {
        let path = file.map_err(StoreError::io("read", dir))?.path();
        if let Some(id) = segment::id_of(&path) {
            paths.push((id, path));
        }
    }
    paths.sort();
    Ok(paths)
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
