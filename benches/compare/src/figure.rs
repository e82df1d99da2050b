//! Figures of a slice, and what many slices have in common.

use std::time::Duration;

use crate::measure::Sample;

impl Sample {
    pub fn cycles_per_second(&self) -> f64 {
        self.counts.iter().sum::<u64>() as f64 / self.slice.as_secs_f64()
    }

    /// Jain's index over all tasks of all processes: 1 is fair, 1/tasks is one task taking all.
    pub fn fairness(&self) -> f64 {
        let sum: f64 = self.counts.iter().map(|&count| count as f64).sum();
        let squares: f64 = self
            .counts
            .iter()
            .map(|&count| (count as f64).powi(2))
            .sum();
        sum * sum / (self.counts.len() as f64 * squares)
    }

    pub fn requests_per_acquisition(&self) -> f64 {
        self.requests as f64 / self.acquired as f64
    }

    pub fn server_micros_per_cycle(&self) -> f64 {
        self.server_micros as f64 / self.acquired as f64
    }

    pub fn client_micros_per_cycle(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.acquired as f64
    }

    /// The share of one core that the client's processes used, in per cent.
    pub fn client_load(&self) -> f64 {
        100.0 * self.cpu.as_secs_f64() / self.slice.as_secs_f64()
    }

    pub fn resident_kib(&self) -> f64 {
        self.resident / 1024.0
    }

    pub fn lost(&self) -> f64 {
        self.lost as f64
    }

    /// From the end of one holder's section to the start of the next one's, on average, in ms.
    pub fn hand_off_millis(&self) -> f64 {
        let gaps = self
            .held
            .windows(2)
            .map(|pair| pair[1].from - pair[0].until);
        let pairs = self.held.len().saturating_sub(1);
        gaps.sum::<u64>() as f64 / pairs as f64 / 1e6
    }

    pub fn median_wait_millis(&self) -> f64 {
        self.wait_at(0.5)
    }

    pub fn p99_to_median(&self) -> f64 {
        self.wait_at(0.99) / self.wait_at(0.5)
    }

    pub fn longest_to_median(&self) -> f64 {
        self.wait_at(1.0) / self.wait_at(0.5)
    }

    /// That part of the waits is not longer than this, in ms.
    fn wait_at(&self, part: f64) -> f64 {
        let mut waits: Vec<u64> = self
            .held
            .iter()
            .map(|held| held.from - held.asked)
            .collect();
        waits.sort_unstable();
        let Some(last) = waits.len().checked_sub(1) else {
            return f64::NAN;
        };
        let index = (last as f64 * part).round() as usize;
        Duration::from_nanos(waits[index]).as_secs_f64() * 1e3
    }
}

/// The median and the range.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl Spread {
    pub fn of(mut figures: Vec<f64>) -> Self {
        figures.sort_by(f64::total_cmp);
        let (middle, odd) = (figures.len() / 2, figures.len() % 2 == 1);
        let median = match odd {
            true => figures[middle],
            false => f64::midpoint(figures[middle - 1], figures[middle]),
        };
        Self {
            median,
            least: figures[0],
            most: figures[figures.len() - 1],
        }
    }
}

/// Three significant digits, or all of those before the point, in groups of three.
pub fn text(figure: f64) -> String {
    if !figure.is_finite() {
        return "–".to_owned();
    }
    let digits = match figure.abs() {
        0.0 => 0,
        size if size >= 99.95 => 0,
        size if size >= 9.995 => 1,
        size if size >= 0.995 => 2,
        _ => 3,
    };
    let plain = format!("{figure:.digits$}");
    let (whole, fraction) = plain.split_at(plain.find('.').unwrap_or(plain.len()));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + fraction
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Held;

    fn sample(counts: &[u64]) -> Sample {
        Sample {
            slice: Duration::from_secs(2),
            counts: counts.to_vec(),
            acquired: counts.iter().sum(),
            held: Vec::new(),
            cpu: Duration::from_millis(1),
            resident: 2048.0,
            lost: 0,
            requests: 30,
            server_micros: 50,
        }
    }

    #[test]
    fn jains_index_is_one_for_equal_shares_and_a_share_for_one_who_takes_all() {
        assert_eq!(sample(&[5, 5, 5, 5]).fairness(), 1.0);
        assert_eq!(sample(&[8, 0, 0, 0]).fairness(), 0.25);
    }

    #[test]
    fn figures_count_cycles_and_acquisitions() {
        let sample = sample(&[4, 6]);
        assert_eq!(sample.cycles_per_second(), 5.0);
        assert_eq!(sample.requests_per_acquisition(), 3.0);
        assert_eq!(sample.server_micros_per_cycle(), 5.0);
        assert_eq!(sample.client_micros_per_cycle(), 100.0);
        assert_eq!(sample.resident_kib(), 2.0);
    }

    #[test]
    fn waits_and_hand_offs_are_in_milliseconds() {
        let mut sample = sample(&[3]);
        let millis = |asked: u64, from: u64, until: u64| Held {
            asked: asked * 1_000_000,
            from: from * 1_000_000,
            until: until * 1_000_000,
        };
        sample.held = vec![millis(0, 1, 2), millis(0, 4, 5), millis(1, 9, 10)];
        assert_eq!(sample.hand_off_millis(), 3.0);
        assert_eq!(sample.median_wait_millis(), 4.0);
        assert_eq!(sample.longest_to_median(), 2.0);
    }

    #[test]
    fn a_spread_has_the_middle_and_both_ends() {
        let odd = Spread::of(vec![3.0, 1.0, 2.0]);
        assert_eq!((odd.least, odd.median, odd.most), (1.0, 2.0, 3.0));
        assert_eq!(Spread::of(vec![4.0, 1.0, 2.0, 3.0]).median, 2.5);
    }

    #[test]
    fn figures_have_three_digits_and_groups() {
        for (figure, expected) in [
            (0.0, "0"),
            (0.0824, "0.082"),
            (9.94, "9.94"),
            (99.96, "100"),
            (1234.4, "1,234"),
            (1_234_567.0, "1,234,567"),
            (f64::NAN, "–"),
        ] {
            assert_eq!(text(figure), expected);
        }
    }
}
