//! Standard output that may be a closed pipe or a full disk.

use std::io::{ErrorKind, Write};

/// Writes text to standard output. A reader that went away (`| head`) ends the program quietly with code 0.
///
/// Errors: standard output cannot be written, e.g. a full disk.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => crate::failure::end_at_once(0),
        Err(error) => Err(anyhow::Error::new(error).context("could not write to standard output")),
        Ok(()) => Ok(()),
    }
}

/// Rows of text as aligned columns: the first left, the others right; `header` above, two spaces between.
pub fn table(header: &[String], rows: &[Vec<String>]) -> String {
    let all: Vec<&[String]> = std::iter::once(header).chain(rows.iter().map(Vec::as_slice)).collect();
    let widths: Vec<usize> =
        (0..header.len()).map(|c| all.iter().map(|row| row[c].chars().count()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for row in all {
        let cells: Vec<String> =
            row.iter().zip(&widths).enumerate().map(|(c, (cell, &width))| pad(cell, width, c > 0)).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn pad(cell: &str, width: usize, right: bool) -> String {
    if right { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_line_up() {
        let strings = |row: &[&str]| row.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let text =
            super::table(&strings(&["image", "kB"]), &[strings(&["a.png", "1.5"]), strings(&["long.png", "12.5"])]);
        assert_eq!(text, "image       kB\na.png      1.5\nlong.png  12.5\n");
    }
}
