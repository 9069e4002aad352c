//! Answers and tables go to standard output; nothing else does.

use std::io::{ErrorKind, Write};

/// Why standard output takes no more.
#[derive(Debug)]
pub enum OutputError {
    /// Whoever read it has gone away (`| head`): there is nothing left to do, and nothing is wrong.
    ReaderGone,
    /// It cannot be written; the disk is full, for example.
    Io(std::io::Error),
}

impl std::fmt::Display for OutputError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ReaderGone => f.write_str("nobody reads standard output any more"),
            Self::Io(error) => write!(f, "cannot write to standard output: {error}"),
        }
    }
}

impl std::error::Error for OutputError {}

impl From<std::io::Error> for OutputError {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            ErrorKind::BrokenPipe => Self::ReaderGone,
            _ => Self::Io(error),
        }
    }
}

/// Writes a line to standard output.
///
/// # Errors
/// [`OutputError`]: the line, or a part of it, has not been written.
pub fn line(text: impl AsRef<str>) -> Result<(), OutputError> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", text.as_ref())?;
    out.flush()?;
    Ok(())
}

/// Whether standard output is a pipe that nobody reads any more.
pub fn reader_is_gone() -> bool {
    let mut standard_output = libc::pollfd {
        fd: libc::STDOUT_FILENO,
        events: 0, // errors are reported unasked
        revents: 0,
    };
    // SAFETY: the pointer is to one live `pollfd`, as the count says; a limit of 0 does not wait.
    let found = unsafe { libc::poll(&mut standard_output, 1, 0) };
    found == 1 && standard_output.revents & libc::POLLERR != 0
}

/// Writes rows in aligned columns; the first row is the heading. Columns named in `right` are set flush
/// right.
///
/// # Errors
/// [`OutputError`], as [`line()`].
pub fn table(rows: &[Vec<String>], right: &[usize]) -> Result<(), OutputError> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |text: &String| text.chars().count();
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            rows.iter()
                .filter_map(|row| row.get(column))
                .map(width)
                .max()
                .unwrap_or(0)
        })
        .collect();
    for (index, row) in rows.iter().enumerate() {
        let cells: Vec<String> = row
            .iter()
            .enumerate()
            .map(|(column, cell)| {
                let gap = " ".repeat(widths[column] - width(cell));
                if right.contains(&column) {
                    format!("{gap}{cell}")
                } else {
                    format!("{cell}{gap}")
                }
            })
            .collect();
        line(cells.join("  ").trim_end())?;
        if index == 0 {
            line("-".repeat(widths.iter().sum::<usize>() + 2 * columns.saturating_sub(1)))?;
        }
    }
    Ok(())
}

/// Cuts a text for a table's column; `…` marks the cut.
pub fn clipped(text: &str, characters: usize) -> String {
    if text.chars().count() <= characters {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(characters.saturating_sub(1)).collect();
    cut.push('…');
    cut
}
