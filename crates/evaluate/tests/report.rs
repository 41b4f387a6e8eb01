//! The report as a whole: well-formed, self-contained, and unmoved by odd input.

use seedpo_evaluate::report::{
    GridImage, GridRow, Headline, ImageGrid, JudgeLabel, ReportData, RunSeries, SettingsGroup, render, write_report,
};
use tch::{Device, Kind, Tensor};

const HOSTILE: &str = "</style></title><script>alert(1)</script>\"' onload=\"x\" & <b";

/// A report with `text` in every place that takes text.
fn filled(text: &str) -> ReportData {
    let owned = || text.to_owned();
    let mut run = RunSeries { name: owned(), ..RunSeries::default() };
    for (step, value) in [(0.0, 1.0), (1.0, f64::NAN), (2.0, 4.0)] {
        for key in ["preview.reward_mean", "preview.heldout_mean", "preview.measured.rmse", "update.loss", text] {
            run.push(key, step, value);
        }
    }
    let image = Tensor::full([4, 8, 3], 9, (Kind::Uint8, Device::Cpu));
    let images = vec![GridImage::from_tensor(&image, text).unwrap(), GridImage { png: vec![1, 2], caption: owned() }];
    let row = GridRow { prompt: owned(), cells: vec![images.clone(), images] };
    let judge = JudgeLabel { name: owned(), unit: owned() };
    ReportData {
        title: owned(),
        summary: owned(),
        facts: vec![owned()],
        reward: judge.clone(),
        heldout: Some(judge),
        runs: vec![run.clone(), run],
        headlines: vec![Headline { label: owned(), value: owned(), detail: owned() }],
        grids: vec![ImageGrid { title: owned(), note: owned(), columns: vec![owned(), owned()], rows: vec![row] }],
        command: Some(owned()),
        settings: vec![SettingsGroup { title: owned(), rows: vec![(owned(), owned())] }],
        snippet: Some(owned()),
        environment: vec![(owned(), owned())],
    }
}

/// Tags in order; panics where they do not nest.
fn check_nesting(html: &str) -> usize {
    const VOID: [&str; 3] = ["meta", "img", "!doctype"];
    let mut open: Vec<&str> = Vec::new();
    let mut count = 0;
    for piece in html.split('<').skip(1) {
        let (tag, _) = piece.split_once('>').expect("a tag ends");
        let name = tag.split([' ', '\n', '/']).find(|part| !part.is_empty()).unwrap();
        count += 1;
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "closing tag near {piece:.60}");
        } else if !VOID.contains(&name) && !tag.ends_with('/') {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "left open: {open:?}");
    count
}

#[test]
fn a_full_report_is_well_formed_and_self_contained() {
    let html = render(&filled("plain text"));
    assert!(check_nesting(&html) > 150);
    for forbidden in ["http://", "https://", "<script", "<link", "@import", "url("] {
        assert!(!html.contains(forbidden), "{forbidden}");
    }
    let sources: Vec<&str> = html.split("src=\"").skip(1).collect();
    assert_eq!(sources.len(), 2);
    assert!(sources.iter().all(|source| source.starts_with("data:image/png;base64,iVBORw0KGgo")));
    assert_eq!(html.matches(" alt=\"").count(), 2);
    assert_eq!(html.matches("unreadable image").count(), 2);
    assert!(html.contains("not finite are left out"));
}

#[test]
fn hostile_text_is_shown_and_nothing_more() {
    let html = render(&filled(HOSTILE));
    let plain = render(&filled("plain text"));
    assert_eq!(check_nesting(&html), check_nesting(&plain));
    assert!(!html.contains("<script") && !html.contains("onload=\"x\"") && html.contains("&lt;script&gt;"));
}

#[test]
fn an_empty_report_is_a_page() {
    let html = render(&ReportData::default());
    check_nesting(&html);
    assert!(html.contains("<h1>Alignment report</h1>") && !html.contains("<svg"));
    let nothing_logged = ReportData { runs: vec![RunSeries::default(), RunSeries::default()], ..ReportData::default() };
    check_nesting(&render(&nothing_logged));
}

#[test]
fn small_images_are_enlarged_in_whole_steps() {
    let image = |height, width| {
        let pixels = Tensor::zeros([height, width, 3], (Kind::Uint8, Device::Cpu));
        GridImage::from_tensor(&pixels, "").unwrap()
    };
    let row = GridRow { prompt: "p".to_owned(), cells: vec![vec![image(64, 64), image(512, 768)]] };
    let grids = vec![ImageGrid { rows: vec![row], columns: vec!["Before".to_owned()], ..ImageGrid::default() }];
    let html = render(&ReportData { grids, ..ReportData::default() });
    assert!(html.contains("<img class=\"pixelated\" width=\"128\" height=\"128\""), "{html}");
    assert!(html.contains("<img width=\"320\" height=\"213\""), "{html}");
    assert!(html.contains("alt=\"“p”, Before, image 1 of 2\""), "{html}");
}

#[test]
fn without_a_summary_the_curves_are_put_in_words() {
    let mut run = RunSeries { name: "SEE".to_owned(), ..RunSeries::default() };
    for (step, reward, rmse) in [(0.0, -4.0, 50.0), (20.0, -3.0, 45.0)] {
        run.push("preview.reward_mean", step, reward);
        run.push("preview.measured.rmse", step, rmse);
    }
    let reward = JudgeLabel { name: "jpeg-compressibility".to_owned(), unit: "kB".to_owned() };
    let html = render(&ReportData { runs: vec![run], reward, ..ReportData::default() });
    assert!(html.contains("The reward jpeg-compressibility rose from −4 to −3 kB in 20 updates."), "{html:.900}");
    assert!(html.contains("one prompt, the policy kept 90 %."));
    assert!(html.contains("+1 kB (+25 %)"));
}

#[test]
fn reports_are_written_whole_and_survive_json() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.html");
    let mut data = filled("γ = 1");
    write_report(&path, &data).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), render(&data));
    assert!(write_report(&folder.path().join("absent/report.html"), &data).is_err());
    // JSON has no NaN; without it the data comes back as it was.
    data.runs.iter_mut().flat_map(|run| run.series.values_mut()).for_each(|points| points.retain(|p| p.1.is_finite()));
    let back: ReportData = serde_json::from_str(&serde_json::to_string(&data).unwrap()).unwrap();
    assert_eq!(render(&back), render(&data));
}
