//! The run as a picture: a lane for each worker, claims as bars in the colour of their key, faults
//! as bands, losses and refused writes as marks.

use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;

use crate::checker::Findings;
use crate::history::{Claim, MS, Record, TTLS};
use crate::plan::Plan;

const WIDTH: f64 = 1800.0;
const LEFT: f64 = 84.0;
const TOP: f64 = 64.0;
/// Height of a key's row in a lane, of a lane, and of the space below it.
const ROW: f64 = 9.0;
const LANE: f64 = ROW * TTLS.len() as f64;
const GAP: f64 = 12.0;
const SERVER: f64 = 22.0;
const COLOURS: [&str; TTLS.len()] = [
    "#4477aa", "#228833", "#aa7700", "#7755aa", "#008899", "#555555",
];

/// Writes an SVG, and beside it a page that shows it.
pub fn draw(
    record: &Record,
    findings: &Findings,
    plan: &Plan,
    (from, until): (u64, u64),
    page: &Path,
) -> Result<(), Box<dyn Error>> {
    let lanes = 1 + record.lives.iter().map(|life| life.lane).max().unwrap_or(0);
    let mut canvas = Canvas {
        svg: String::new(),
        labels: String::new(),
        from,
        until,
        lanes,
    };
    canvas.frame(&title(findings, plan));
    canvas.faults(record);
    record.claims.iter().for_each(|claim| canvas.claim(claim));
    for overlap in &findings.overlaps {
        canvas.overlap(overlap.key, overlap.from, overlap.until, overlap.lanes);
    }
    for write in record.writes.iter().filter(|write| !write.accepted) {
        if let Some(x) = canvas.x(write.at) {
            let y = canvas.row(write.lane, write.key) + ROW / 2.0;
            let _ = writeln!(
                canvas.svg,
                r##"<circle cx="{x:.1}" cy="{y:.1}" r="4" class="refused"><title>stale write refused: token {}</title></circle>"##,
                write.token
            );
        }
    }
    let height = canvas.bottom() + 66.0;
    let svg = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">
<style>{STYLE}</style>
<rect width="100%" height="100%" fill="white"/>
{}{}</svg>
"##,
        canvas.svg, canvas.labels
    );
    std::fs::write(page.with_extension("svg"), &svg)?;
    let html = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <title>A torture run of redlease</title>\n\
         <style>body {{ margin: 1em; font-family: sans-serif }} svg {{ width: 100% }}</style>\n\
         <h1>A torture run of redlease</h1>\n\
         <p>Point at a bar, a band or a mark to read what it is.</p>\n{svg}</html>\n"
    );
    std::fs::write(page, html)?;
    Ok(())
}

const STYLE: &str = "\
.band { fill: #ee6677; fill-opacity: 0.16 } .edge { stroke: #cc3344; stroke-width: 0.6 }\
.lost { stroke: #cc0000; stroke-width: 2 } .refused { fill: #ff9900; stroke: #663300 }\
.overlap { fill: #ff00ff } .wait { stroke-width: 0.7; stroke-opacity: 0.35 }\
.label { font-size: 11px; fill: #991122; stroke: white; stroke-width: 3px; paint-order: stroke }\
.server { fill: #ee6677; fill-opacity: 0.55 } .grid { stroke: #dddddd; stroke-width: 0.6 }";

fn title(findings: &Findings, plan: &Plan) -> String {
    format!(
        "fault: {}, seed {} · {} holds, {} hand-overs between processes, {} losses, {} overlaps",
        plan.title,
        plan.seed,
        findings.holds,
        findings.handovers,
        findings.losses,
        findings.overlaps.len()
    )
}

struct Canvas {
    svg: String,
    /// What is written over all the rest.
    labels: String,
    from: u64,
    until: u64,
    lanes: usize,
}

impl Canvas {
    fn x(&self, at: u64) -> Option<f64> {
        (self.from..=self.until)
            .contains(&at)
            .then(|| self.clamped(at))
    }

    fn clamped(&self, at: u64) -> f64 {
        let at = at.clamp(self.from, self.until) - self.from;
        let length = (self.until - self.from).max(1);
        LEFT + at as f64 / length as f64 * (WIDTH - LEFT - 16.0)
    }

    /// The ends of a span, if any of it is in the picture.
    fn span(&self, from: u64, until: u64) -> Option<(f64, f64)> {
        let is_in = from < self.until && until > self.from;
        is_in.then(|| (self.clamped(from), self.clamped(until)))
    }

    fn lane(&self, lane: usize) -> f64 {
        TOP + SERVER + GAP + lane as f64 * (LANE + GAP)
    }

    fn row(&self, lane: usize, key: usize) -> f64 {
        self.lane(lane) + key as f64 * ROW
    }

    fn bottom(&self) -> f64 {
        self.lane(self.lanes)
    }

    fn text(&mut self, x: f64, y: f64, more: &str, text: &str) {
        let _ = writeln!(
            self.svg,
            r##"<text x="{x:.1}" y="{y:.1}" {more}>{text}</text>"##
        );
    }

    /// A short text beside what it is about, legible on any ground.
    fn label(&mut self, x: f64, y: f64, text: &str) {
        let _ = writeln!(
            self.labels,
            r##"<text x="{x:.1}" y="{y:.1}" class="label">{text}</text>"##
        );
    }

    fn rect(&mut self, (x, to): (f64, f64), y: f64, height: f64, more: &str, title: &str) {
        // Thinner than half a point cannot be seen.
        let width = (to - x).max(0.6);
        let _ = writeln!(
            self.svg,
            r##"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" {more}><title>{title}</title></rect>"##
        );
    }

    fn frame(&mut self, title: &str) {
        self.text(LEFT, 22.0, r##"font-size="16" font-weight="bold""##, title);
        let bottom = self.bottom();
        let seconds = (self.until - self.from) / (1000 * MS);
        for second in 0..=seconds {
            let x = self.clamped(self.from + second * 1000 * MS);
            let _ = writeln!(
                self.svg,
                r##"<line x1="{x:.1}" x2="{x:.1}" y1="{TOP}" y2="{bottom}" class="grid"/>"##
            );
            self.text(
                x,
                TOP - 8.0,
                r##"text-anchor="middle""##,
                &format!("{second} s"),
            );
        }
        self.text(8.0, TOP + 15.0, "", "server");
        for lane in 0..self.lanes {
            let y = self.lane(lane);
            self.text(8.0, y + LANE / 2.0 + 4.0, "", &format!("worker {lane}"));
            let more = r##"fill="#f4f4f4""##;
            self.rect((LEFT, WIDTH - 16.0), y, LANE, more, "");
        }
        self.legend(bottom + 14.0);
    }

    fn legend(&mut self, y: f64) {
        let mut x = LEFT;
        for (key, colour) in COLOURS.iter().enumerate() {
            let more = format!(r##"fill="{colour}""##);
            self.rect((x, x + 24.0), y, ROW, &more, "");
            let text = format!("key {key}, TTL {} ms", TTLS[key]);
            self.text(x + 30.0, y + 9.0, "", &text);
            x += 160.0;
        }
        let y = y + 26.0;
        self.rect((LEFT, LEFT + 24.0), y, 12.0, r##"class="band""##, "");
        self.text(LEFT + 30.0, y + 10.0, "", "fault");
        let x = LEFT + 90.0;
        let _ = writeln!(
            self.svg,
            r##"<line x1="{x}" x2="{x}" y1="{y}" y2="{}" class="lost"/>"##,
            y + 12.0
        );
        self.text(x + 8.0, y + 10.0, "", "the lease was lost");
        let x = x + 150.0;
        let cy = y + 6.0;
        let _ = writeln!(
            self.svg,
            r##"<circle cx="{x}" cy="{cy}" r="4" class="refused"/>"##
        );
        self.text(x + 10.0, y + 10.0, "", "stale write refused");
        let x = x + 160.0;
        self.rect((x, x + 24.0), y, 12.0, r##"class="overlap""##, "");
        self.text(x + 30.0, y + 10.0, "", "overlap of two claims");
        self.text(
            x + 200.0,
            y + 10.0,
            "",
            "solid bar: certainly held · pale: the guard is there, but paused, lost or being given up \
             · thin line: waits",
        );
    }

    fn faults(&mut self, record: &Record) {
        let mut ends = [f64::MIN; 2];
        let mut ends_in_lane = vec![[f64::MIN; 3]; self.lanes];
        for fault in &record.disturbances {
            let Some((from, until)) = self.span(fault.from, fault.until) else {
                continue;
            };
            let title = format!("{} {}", fault.name, fault.detail);
            match fault.lane {
                Some(lane) => {
                    let y = self.lane(lane) - GAP / 2.0;
                    self.rect((from, until), y, LANE + GAP, r##"class="band""##, &title);
                    let first = record
                        .disturbances
                        .iter()
                        .filter(|other| other.from == fault.from && other.name == fault.name)
                        .filter_map(|other| other.lane)
                        .min();
                    if first == Some(lane) {
                        let ends = &mut ends_in_lane[lane];
                        let line = (0..3).find(|&line| ends[line] < from).unwrap_or(2);
                        ends[line] = from + 75.0;
                        let y = y + 9.0 + 10.0 * line as f64;
                        self.label(from + 2.0, y, fault.name);
                    }
                }
                None => {
                    self.rect((from, until), TOP, SERVER, r##"class="server""##, &title);
                    let height = self.bottom() - TOP;
                    self.rect((from, until), TOP, height, r##"class="band""##, &title);
                    // Labels of faults that follow each other closely take turns.
                    let line = usize::from(ends[0] > from);
                    ends[line] = from + 90.0;
                    let y = TOP + 9.0 + 11.0 * line as f64;
                    self.label(from + 2.0, y, fault.name);
                }
            }
        }
        for life in &record.lives {
            if life.from > self.from + 200 * MS
                && let Some(x) = self.x(life.from)
            {
                let y = self.lane(life.lane);
                self.label(x, y + LANE, "restarted");
            }
        }
    }

    fn claim(&mut self, claim: &Claim) {
        let colour = COLOURS[claim.key];
        let y = self.row(claim.lane, claim.key);
        let got = claim.guard.as_ref().map(|guard| guard.got);
        let waited = got.or(claim.gave_up).unwrap_or(self.until);
        if let Some((from, until)) = self.span(claim.called, waited) {
            let y = y + ROW / 2.0;
            let _ = writeln!(
                self.svg,
                r##"<line x1="{from:.1}" x2="{until:.1}" y1="{y:.1}" y2="{y:.1}" class="wait" stroke="{colour}"/>"##
            );
        }
        let Some(guard) = &claim.guard else { return };
        let title = format!(
            "key {}, token {}, held for {:.1} ms",
            claim.key,
            guard.token,
            (guard.held - guard.got) as f64 / MS as f64
        );
        let end = guard.ended.as_ref().map_or(guard.held, |(end, _)| *end);
        if let Some(span) = self.span(guard.got, end.max(guard.held)) {
            let more = format!(r##"fill="{colour}" fill-opacity="0.3""##);
            self.rect(span, y + 1.0, ROW - 2.0, &more, &title);
        }
        if let Some(span) = self.span(guard.got, guard.held) {
            let more = format!(r##"fill="{colour}""##);
            self.rect(span, y + 1.0, ROW - 2.0, &more, &title);
        }
        if let Some((_, after, reason)) = &guard.lost
            && let Some(x) = self.x(*after)
        {
            let (top, bottom) = (y - 2.0, y + ROW + 2.0);
            let _ = writeln!(
                self.svg,
                r##"<line x1="{x:.1}" x2="{x:.1}" y1="{top:.1}" y2="{bottom:.1}" class="lost"><title>lost: {reason}</title></line>"##
            );
        }
    }

    fn overlap(&mut self, key: usize, from: u64, until: u64, lanes: (usize, usize)) {
        if let Some(span) = self.span(from, until) {
            for lane in [lanes.0, lanes.1] {
                let y = self.row(lane, key);
                self.rect(span, y, ROW, r##"class="overlap""##, "two held it");
            }
        }
    }
}
