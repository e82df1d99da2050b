use super::*;

impl Schedule {
    /// Each place in the schedule.
    pub(in crate::keys) fn entries(&self) -> Vec<(Moment, Arc<KeyState>)> {
        let wakes = self.wakes.lock();
        let entries = wakes.entries.iter();
        entries
            .map(|wake| (wake.at, Arc::clone(&wake.key)))
            .collect()
    }

    /// Whether somebody asked for the driver since it was last looked at.
    pub(in crate::keys) fn was_woken(&self) -> bool {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        let early = std::pin::pin!(self.early());
        early.poll(&mut context).is_ready()
    }
}
