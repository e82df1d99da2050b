//! The figures as bar charts: one panel for each scenario and figure, in two columns.
//!
//! The picture brings its own background, light or dark as the reader's system asks, so that it
//! can be read on a page of either kind.

use std::fmt::Write;

use crate::contender::Contender;
use crate::figure::text;
use crate::scenario::CYCLES_PER_SECOND;
use crate::table::{Row, Setting};

const WIDTH: u32 = 940;
const MARGIN: u32 = 24;
const COLUMN: u32 = (WIDTH - 3 * MARGIN) / 2;
/// Room left of the bars for what they are of, and right of the longest for its figure.
const LABEL: u32 = 112;
const VALUE: u32 = 62;
const BAR: u32 = 15;
const BAR_STEP: u32 = 18;
const GROUP_GAP: u32 = 12;
const PANEL_HEAD: u32 = 46;
const PANEL_GAP: u32 = 26;
const TOP: u32 = 112;

const STYLE: &str = "\
.card{fill:#fff;stroke:#d0d7de}.t{fill:#1f2328}.m{fill:#59636e}.axis{stroke:#d0d7de}\
text{font-family:system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif;font-size:12px}\
.h{font-size:18px;font-weight:600}.p{font-size:13px;font-weight:600}\
.b{font-weight:600}.e{text-anchor:end}\
.c0{fill:#9aa4af}.c1{fill:#d1432f}.c2{fill:#3b82c4}.c3{fill:#9cc7ea}.c4{fill:#d6a02c}\
@media(prefers-color-scheme:dark){.card{fill:#15191f;stroke:#3d444d}.t{fill:#f0f6fc}\
.m{fill:#9198a1}.axis{stroke:#3d444d}.c0{fill:#7d8590}.c1{fill:#f0654f}.c2{fill:#5aa2e0}\
.c3{fill:#2f5f8a}.c4{fill:#e0b341}}";

/// The groups of bars that share a scale.
struct Panel<'a> {
    title: &'static str,
    figure: &'static str,
    rows: Vec<&'a Row>,
}

impl Panel<'_> {
    fn height(&self) -> u32 {
        let bars: u32 = self.rows.iter().map(|row| group_height(row)).sum();
        PANEL_HEAD + bars
    }
}

pub fn draw(setting: &Setting, rows: &[Row]) -> String {
    let panels = panels(rows);
    let mut body = String::new();
    // Each panel goes to the column that is shorter so far.
    let mut ends = [TOP; 2];
    for panel in &panels {
        let column = usize::from(ends[1] < ends[0]);
        let x = MARGIN + column as u32 * (COLUMN + MARGIN);
        draw_panel(&mut body, panel, x, ends[column]);
        ends[column] += panel.height() + PANEL_GAP;
    }
    let height = ends[0].max(ends[1]) - PANEL_GAP + MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\" role=\"img\">\n\
         <title>redlease beside other locks on Redis</title>\n<style>{STYLE}</style>\n\
         <rect class=\"card\" x=\".5\" y=\".5\" width=\"{}\" height=\"{}\" rx=\"8\"/>\n\
         <text class=\"t h\" x=\"{MARGIN}\" y=\"36\">redlease beside other locks on Redis</text>\n\
         <text class=\"m\" x=\"{MARGIN}\" y=\"56\">{}</text>\n\
         <text class=\"m\" x=\"{MARGIN}\" y=\"72\">{}</text>\n",
        WIDTH - 1,
        height - 1,
        escape(&setting.versions),
        escape(&setting.run),
    );
    draw_legend(&mut svg, rows);
    svg + &body + "</svg>\n"
}

fn panels(rows: &[Row]) -> Vec<Panel<'_>> {
    let mut panels: Vec<Panel<'_>> = Vec::new();
    for row in rows.iter().filter(|row| row.in_chart) {
        let (title, figure) = (row.scenario.title(), row.figure);
        let same = |panel: &&mut Panel<'_>| (panel.title, panel.figure) == (title, figure);
        match panels.iter_mut().find(same) {
            Some(panel) => panel.rows.push(row),
            None => panels.push(Panel {
                title,
                figure,
                rows: vec![row],
            }),
        }
    }
    panels
}

fn draw_legend(svg: &mut String, rows: &[Row]) {
    let mut x = MARGIN;
    for (index, contender) in Contender::ALL.into_iter().enumerate() {
        if !rows.iter().any(|row| row.median(contender).is_some()) {
            continue;
        }
        let name = contender.name();
        let _ = writeln!(
            svg,
            "<rect class=\"c{index}\" x=\"{x}\" y=\"85\" width=\"12\" height=\"12\" rx=\"2\"/>\
             <text class=\"t\" x=\"{}\" y=\"95\">{name}</text>",
            x + 18,
        );
        x += 44 + 7 * name.len() as u32;
    }
}

fn draw_panel(svg: &mut String, panel: &Panel<'_>, x: u32, y: u32) {
    let better = match panel.figure {
        CYCLES_PER_SECOND => "more",
        _ => "less",
    };
    let _ = writeln!(
        svg,
        "<text class=\"t p\" x=\"{x}\" y=\"{}\">{}</text>\
         <text class=\"m\" x=\"{x}\" y=\"{}\">{}; {better} is better</text>",
        y + 14,
        escape(panel.title),
        y + 31,
        escape(panel.figure),
    );
    let figures = panel.rows.iter().flat_map(|row| &row.medians);
    let most = figures.map(|(_, figure)| *figure).fold(0.0, f64::max);
    let start = x + LABEL;
    let mut y = y + PANEL_HEAD;
    for row in &panel.rows {
        let height = group_height(row) - GROUP_GAP;
        let _ = writeln!(
            svg,
            "<text class=\"m e\" x=\"{}\" y=\"{}\">{}</text>\
             <path class=\"axis\" d=\"M{start}.5 {}V{}\"/>",
            start - 8,
            y + height / 2 + 4,
            escape(&row.label),
            y - 3,
            y + height + 1,
        );
        for (line, (contender, figure)) in row.medians.iter().enumerate() {
            draw_bar(
                svg,
                *contender,
                *figure,
                most,
                start,
                y + line as u32 * BAR_STEP,
            );
        }
        y += height + GROUP_GAP;
    }
}

fn draw_bar(svg: &mut String, contender: Contender, figure: f64, most: f64, x: u32, y: u32) {
    let room = f64::from(COLUMN - LABEL - VALUE);
    let share = if most > 0.0 { figure / most } else { 0.0 };
    let length = (room * share).max(1.0);
    let index = Contender::ALL.iter().position(|other| *other == contender);
    let emphasis = if contender == Contender::Redlease {
        " b"
    } else {
        ""
    };
    let _ = writeln!(
        svg,
        "<rect class=\"c{}\" x=\"{}\" y=\"{y}\" width=\"{length:.1}\" height=\"{BAR}\" rx=\"2\"/>\
         <text class=\"t{emphasis}\" x=\"{:.1}\" y=\"{}\">{}</text>",
        index.unwrap_or_default(),
        x + 1,
        f64::from(x) + length + 7.0,
        y + 12,
        text(figure),
    );
}

fn group_height(row: &Row) -> u32 {
    row.medians.len() as u32 * BAR_STEP + GROUP_GAP
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
