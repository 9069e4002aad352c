//! Answers and tables go to standard output; nothing else does.

use std::io::Write;

/// Writes a line to standard output. A reader that has gone away (`| head`) is no error of ours.
pub fn line(text: impl AsRef<str>) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{}", text.as_ref());
    let _ = out.flush();
}

/// Writes rows in aligned columns; the first row is the heading. Columns named in `right` are set flush right.
pub fn table(rows: &[Vec<String>], right: &[usize]) {
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
        line(cells.join("  ").trim_end());
        if index == 0 {
            line("-".repeat(widths.iter().sum::<usize>() + 2 * columns.saturating_sub(1)));
        }
    }
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
