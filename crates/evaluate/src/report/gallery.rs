//! Images before and after, as a table: a prompt per row, a condition per column.

use super::data::{GridImage, GridRow, ImageGrid};
use super::format::escape;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::fmt::Write;

/// Images with a side below this are enlarged pixel by pixel, in whole steps so that pixels stay square.
const SMALL: u32 = 128;
/// Images are not shown wider than this, in CSS pixels.
const WIDEST: u32 = 320;

pub(super) fn gallery(out: &mut String, grid: &ImageGrid, index: usize) {
    if grid.rows.is_empty() {
        return;
    }
    let title = if grid.title.is_empty() { "Images" } else { &grid.title };
    let _ = writeln!(out, "<section aria-labelledby=\"grid-{index}\">\n<h2 id=\"grid-{index}\">{}</h2>", escape(title));
    if !grid.note.is_empty() {
        let _ = writeln!(out, "<p class=\"section-lead\">{}</p>", escape(&grid.note));
    }
    let heads: String = grid.columns.iter().map(|name| format!("<th scope=\"col\">{}</th>", escape(name))).collect();
    let _ =
        writeln!(out, "<table class=\"gallery\"><thead><tr><th scope=\"col\">Prompt</th>{heads}</tr></thead>\n<tbody>");
    for row in &grid.rows {
        prompt_row(out, grid, row);
    }
    out.push_str("</tbody></table>\n</section>\n");
}

fn prompt_row(out: &mut String, grid: &ImageGrid, row: &GridRow) {
    let _ = write!(out, "<tr><th scope=\"row\">{}</th>", escape(&row.prompt));
    for (column, images) in row.cells.iter().enumerate() {
        let name = grid.columns.get(column).map_or("", String::as_str);
        let _ = write!(out, "<td data-column=\"{}\"><div class=\"images\">", escape(name));
        for (index, image) in images.iter().enumerate() {
            let mut alt = format!("“{}”", row.prompt);
            if !name.is_empty() {
                let _ = write!(alt, ", {name}");
            }
            if images.len() > 1 {
                let _ = write!(alt, ", image {} of {}", index + 1, images.len());
            }
            one_image(out, image, &alt);
        }
        out.push_str("</div></td>");
    }
    out.push_str("</tr>\n");
}

fn one_image(out: &mut String, image: &GridImage, alt: &str) {
    let Some((width, height)) = image.size().filter(|size| size.0 > 0 && size.1 > 0) else {
        out.push_str("<figure><p class=\"warning\">unreadable image</p></figure>");
        return;
    };
    let short = width.min(height);
    let (class, shown) =
        if short < SMALL { (" class=\"pixelated\"", width * SMALL.div_ceil(short)) } else { ("", width.min(WIDEST)) };
    let tall = u64::from(height) * u64::from(shown) / u64::from(width);
    let _ = write!(
        out,
        "<figure><img{class} width=\"{shown}\" height=\"{tall}\" loading=\"lazy\" alt=\"{}\" src=\"data:image/png;base64,{}\">",
        escape(alt),
        STANDARD.encode(&image.png)
    );
    if !image.caption.is_empty() {
        let _ = write!(out, "<figcaption>{}</figcaption>", escape(&image.caption));
    }
    out.push_str("</figure>");
}
