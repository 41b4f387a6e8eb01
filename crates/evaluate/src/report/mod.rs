//! `report.html`: one self-contained page that shows what a run did.
//!
//! No script, no font, no image comes from elsewhere, so the file can be mailed or opened years later. It follows the
//! reader's light or dark setting, and everything drawn is also there as text.

mod axes;
mod catalogue;
mod chart;
mod data;
mod format;
mod gallery;
mod headlines;
mod html;
mod points;

pub use data::{
    Aligned, GridImage, GridRow, Headline, ImageGrid, JudgeLabel, ReportData, RunSeries, SettingsGroup,
    diffusers_snippet,
};
pub use html::render;

use crate::Result;
use std::path::Path;

/// Renders and writes a report in one step.
///
/// Errors: [`crate::Error::File`], e.g. no space left; the old report then stays.
pub fn write_report(path: &Path, data: &ReportData) -> Result<()> {
    Ok(seedpo_tensor::write_atomic(path, render(data).as_bytes())?)
}
