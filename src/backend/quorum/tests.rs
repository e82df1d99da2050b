//! The quorum over members that do what a test tells them, in memory and on paused time.

use super::fake::Fake;
use super::*;
use crate::backend::faulty::Nobody;
use crate::clock::Clock;

const TTL: Duration = Duration::from_secs(10);
const WITHIN: Duration = Duration::from_secs(1);

struct Fixture {
    fakes: Vec<Arc<Fake>>,
    quorum: Quorum,
    key: Arc<Key>,
}

impl Fixture {
    fn new(count: usize) -> Self {
        let clock = Clock::tokio();
        let fakes: Vec<_> = (0..count).map(|_| Fake::new(&clock)).collect();
        let members = fakes.iter().map(|fake| Arc::clone(fake) as Arc<dyn Member>);
        Self {
            quorum: Quorum::new(members.collect(), &Hints::new(Arc::new(Nobody))),
            fakes,
            key: Arc::new(Key::new("", "k".to_owned())),
        }
    }

    fn claim(&self, value: &str) -> Arc<Claim> {
        Arc::new(Claim::new(Arc::clone(&self.key), value.into(), TTL))
    }

    async fn acquire(&self, claim: &Arc<Claim>) -> Result<Attempt, Fault> {
        self.quorum.acquire(claim, Fences::floor(1), WITHIN).await
    }

    async fn granted(&self, value: &str) -> Arc<Claim> {
        let claim = self.claim(value);
        let attempt = self.acquire(&claim).await.unwrap();
        assert!(matches!(attempt, Attempt::Granted { .. }));
        settle().await;
        claim
    }

    /// Gives up a claim that was not granted, as the driver does; says whether anything was left
    /// to do.
    async fn give_up(&self, claim: &Arc<Claim>) -> bool {
        if self.quorum.disown(claim).is_none() {
            return false;
        }
        self.quorum.release(claim, WITHIN).await.unwrap();
        self.quorum.settle(claim, WITHIN).await;
        true
    }

    async fn value_at(&self, member: usize) -> Option<String> {
        let holder = self.fakes[member].memory.holder(&self.key, WITHIN).await;
        let holder = holder.unwrap()?;
        Some(String::from_utf8(holder.value).unwrap())
    }
}

/// Lets everything happen that does not wait for time.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_member_is_not_waited_for() {
    let f = Fixture::new(3);
    f.fakes[0].hold();
    let start = Instant::now();
    let claim = f.granted("a").await;
    let renewal = f.quorum.renew(&claim, Listen::Yes, WITHIN).await.unwrap();
    assert!(matches!(renewal, Renewal::Renewed { .. }));
    assert_eq!(
        f.quorum.release(&claim, WITHIN).await.unwrap(),
        Freed::Freed
    );
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn p10_a_late_grant_is_kept_while_it_is_held_and_undone_when_it_is_not() {
    let f = Fixture::new(3);
    f.fakes[0].hold();
    let _kept = f.granted("a").await;
    f.fakes[0].let_go();
    settle().await;
    assert_eq!(f.value_at(0).await.as_deref(), Some("a"));

    let f = Fixture::new(3);
    f.fakes[0].hold();
    let claim = f.granted("a").await;
    f.quorum.release(&claim, WITHIN).await.unwrap();
    f.fakes[0].let_go();
    settle().await;
    assert_eq!(f.value_at(0).await, None);
    assert!(f.fakes[0].calls("release") > 0);
}

#[tokio::test(start_paused = true)]
async fn a_split_vote_does_not_wait_for_a_silent_member() {
    let f = Fixture::new(3);
    f.fakes[1]
        .memory
        .acquire(&f.claim("other"), Fences::floor(1), WITHIN)
        .await
        .unwrap();
    f.fakes[2].hold();
    let start = Instant::now();
    let claim = f.claim("a");
    let attempt = f.acquire(&claim).await.unwrap();
    assert!(matches!(attempt, Attempt::Held { ttl: Some(_) }));
    assert!(start.elapsed() < WITHIN / 10);
    assert!(f.quorum.disown(&claim).is_some());
    f.quorum.release(&claim, WITHIN).await.unwrap();
    settle().await;
    f.fakes[2].let_go();
    settle().await;
    for member in [0, 2] {
        assert_eq!(f.value_at(member).await, None);
    }
    assert!(!f.give_up(&claim).await, "there is nothing left to do");
}

/// Patience with the slow is measured by what they usually take, not by how fast the others are.
#[tokio::test(start_paused = true)]
async fn a_distant_member_can_tip_the_balance() {
    let f = Fixture::new(3);
    f.fakes[1]
        .memory
        .acquire(&f.claim("other"), Fences::floor(1), WITHIN)
        .await
        .unwrap();
    f.fakes[2].answer_after(Duration::from_millis(200));
    for attempt in 0..5 {
        let claim = f.claim(&format!("attempt {attempt}"));
        if let Attempt::Granted { .. } = f.acquire(&claim).await.unwrap() {
            return;
        }
        f.give_up(&claim).await;
    }
    panic!("two of three servers are free");
}

#[tokio::test(start_paused = true)]
async fn p13_a_holder_that_a_silent_member_could_confirm_is_unknown() {
    let f = Fixture::new(3);
    let claim = f.granted("a").await;
    let holder = f.quorum.holder(&f.key, WITHIN).await.unwrap();
    assert_eq!(holder.unwrap().value, b"a");
    f.fakes[1].memory.release(&claim, WITHIN).await.unwrap();
    f.fakes[2].fail(true);
    assert!(f.quorum.holder(&f.key, WITHIN).await.is_err());
    f.fakes[0].memory.release(&claim, WITHIN).await.unwrap();
    assert!(f.quorum.holder(&f.key, WITHIN).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_key_that_no_majority_agrees_on_has_no_holder() {
    let f = Fixture::new(3);
    for (fake, value) in f.fakes.iter().zip(["a", "b", "c"]) {
        let memory = &fake.memory;
        memory
            .acquire(&f.claim(value), Fences::floor(1), WITHIN)
            .await
            .unwrap();
    }
    assert!(f.quorum.holder(&f.key, WITHIN).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn only_a_majority_that_does_not_answer_is_a_fault() {
    let f = Fixture::new(5);
    f.fakes[0].fail(true);
    f.fakes[1].fail(true);
    let first = f.granted("a").await;
    let attempt = f.acquire(&f.claim("b")).await.unwrap();
    assert!(matches!(attempt, Attempt::Held { .. }));
    f.fakes[2].fail(true);
    assert!(f.acquire(&f.claim("c")).await.is_err());
    assert!(f.quorum.renew(&first, Listen::Yes, WITHIN).await.is_err());
    assert!(f.quorum.release(&first, WITHIN).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn p7_a_member_that_lost_the_key_is_repaired() {
    let f = Fixture::new(3);
    let claim = f.granted("a").await;
    // Members that answer before the majority has, and after it.
    for lost in 0..3 {
        let memory = &f.fakes[lost].memory;
        memory.force_release(&f.key, WITHIN).await.unwrap();
        f.quorum.renew(&claim, Listen::Yes, WITHIN).await.unwrap();
        settle().await;
        assert_eq!(f.value_at(lost).await.as_deref(), Some("a"));
    }
}

/// A claim that the first member refused, for the sake of one that it returns.
async fn granted_by_a_bare_majority(f: &Fixture) -> (Arc<Claim>, Arc<Claim>) {
    let loser = f.claim("loser");
    let memory = &f.fakes[0].memory;
    let lost = memory.acquire(&loser, Fences::floor(1), WITHIN).await;
    lost.unwrap();
    (f.granted("a").await, loser)
}

#[tokio::test(start_paused = true)]
async fn a_member_that_refused_gets_the_key_when_it_is_free() {
    let f = Fixture::new(3);
    let (claim, loser) = granted_by_a_bare_majority(&f).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(f.value_at(0).await.as_deref(), Some("loser"));
    f.fakes[0].memory.release(&loser, WITHIN).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(f.value_at(0).await.as_deref(), Some("a"));
    f.quorum.release(&claim, WITHIN).await.unwrap();
    settle().await;
    for member in 0..3 {
        assert_eq!(f.value_at(member).await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_member_that_goes_on_to_refuse_is_left_alone_in_the_end() {
    let f = Fixture::new(3);
    let (claim, _loser) = granted_by_a_bare_majority(&f).await;
    tokio::time::sleep(TTL / 3).await;
    let restores = f.fakes[0].calls("restore");
    assert!((2..30).contains(&restores), "{restores}");
    tokio::time::sleep(TTL / 3).await;
    assert_eq!(f.fakes[0].calls("restore"), restores);
    // S3: it has nothing of ours.
    f.quorum.release(&claim, WITHIN).await.unwrap();
    settle().await;
    assert_eq!(f.fakes[0].calls("release"), 0);
}

#[tokio::test(start_paused = true)]
async fn p10_a_member_that_refused_does_not_get_the_key_after_the_release() {
    let f = Fixture::new(3);
    let (claim, loser) = granted_by_a_bare_majority(&f).await;
    f.quorum.release(&claim, WITHIN).await.unwrap();
    f.fakes[0].memory.release(&loser, WITHIN).await.unwrap();
    tokio::time::sleep(TTL / 2).await;
    assert_eq!(f.fakes[0].calls("restore"), 0);
    assert_eq!(f.value_at(0).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_lost_race_is_undone_where_it_was_granted() {
    let f = Fixture::new(3);
    for fake in &f.fakes[1..] {
        let other = f.claim("other");
        let taken = fake.memory.acquire(&other, Fences::floor(1), WITHIN).await;
        taken.unwrap();
    }
    let claim = f.claim("a");
    let attempt = f.acquire(&claim).await.unwrap();
    assert!(matches!(attempt, Attempt::Held { .. }));
    assert_eq!(f.value_at(0).await, None);
    let releases: Vec<_> = f.fakes.iter().map(|fake| fake.calls("release")).collect();
    assert_eq!(releases, [1, 0, 0], "S3");
    assert!(f.quorum.disown(&claim).is_none());
}

#[tokio::test(start_paused = true)]
async fn p10_an_acquire_that_runs_after_the_release_finds_another_release_behind_it() {
    let f = Fixture::new(3);
    f.fakes[0].delay();
    let claim = f.granted("a").await;
    f.quorum.release(&claim, WITHIN).await.unwrap();
    settle().await;
    assert_eq!(f.fakes[0].run_late().await, 1);
    assert_eq!(f.value_at(0).await, None);
}

#[tokio::test(start_paused = true)]
async fn p10_a_repair_that_runs_after_the_release_finds_another_release_behind_it() {
    let f = Fixture::new(3);
    let claim = f.granted("a").await;
    let memory = &f.fakes[0].memory;
    memory.force_release(&f.key, WITHIN).await.unwrap();
    f.fakes[0].delay();
    f.quorum.renew(&claim, Listen::Yes, WITHIN).await.unwrap();
    settle().await;
    f.quorum.release(&claim, WITHIN).await.unwrap();
    settle().await;
    assert_eq!(f.fakes[0].run_late().await, 1);
    assert_eq!(f.value_at(0).await, None);
}

#[tokio::test(start_paused = true)]
async fn p7_without_a_majority_nothing_is_repaired_and_the_rest_is_given_up() {
    let f = Fixture::new(3);
    let claim = f.granted("a").await;
    for fake in &f.fakes[..2] {
        fake.memory.force_release(&f.key, WITHIN).await.unwrap();
    }
    let renewal = f.quorum.renew(&claim, Listen::Yes, WITHIN).await.unwrap();
    assert!(matches!(renewal, Renewal::Removed));
    settle().await;
    for (member, fake) in f.fakes.iter().enumerate() {
        assert_eq!(f.value_at(member).await, None);
        assert_eq!(fake.calls("restore"), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn p10_no_repair_begins_after_the_release() {
    let f = Fixture::new(3);
    let claim = f.granted("a").await;
    f.fakes[0]
        .memory
        .force_release(&f.key, WITHIN)
        .await
        .unwrap();
    // The renewal of the first member is on its way while the others renew and release.
    f.fakes[0].hold();
    f.quorum.renew(&claim, Listen::Yes, WITHIN).await.unwrap();
    f.quorum.release(&claim, WITHIN).await.unwrap();
    f.fakes[0].let_go();
    settle().await;
    assert!(f.fakes[0].calls("renew") > 0);
    assert_eq!(f.fakes[0].calls("restore"), 0);
    assert_eq!(f.value_at(0).await, None);
}

#[tokio::test(start_paused = true)]
async fn p10_a_repair_under_way_does_not_outlive_the_release() {
    let f = Fixture::new(3);
    let claim = f.granted("a").await;
    f.fakes[0]
        .memory
        .force_release(&f.key, WITHIN)
        .await
        .unwrap();
    f.quorum.renew(&claim, Listen::Yes, WITHIN).await.unwrap();
    // The repair has been handed to a task, and gets no further than to the member.
    f.fakes[0].hold();
    settle().await;
    f.quorum.release(&claim, WITHIN).await.unwrap();
    f.fakes[0].let_go();
    settle().await;
    assert_eq!(f.value_at(0).await, None);
    let log = f.fakes[0].log.lock().clone();
    let last = |name| log.iter().rposition(|call| *call == name);
    assert!(last("release") > last("restore"), "{log:?}");
}

#[tokio::test(start_paused = true)]
async fn a_release_that_is_tried_again_remembers_what_it_freed() {
    let f = Fixture::new(3);
    let claim = f.granted("a").await;
    f.fakes[1].fail(true);
    f.fakes[2].fail(true);
    assert!(f.quorum.release(&claim, WITHIN).await.is_err());
    f.fakes[1].fail(false);
    assert_eq!(
        f.quorum.release(&claim, WITHIN).await.unwrap(),
        Freed::Freed
    );
}

#[tokio::test(start_paused = true)]
async fn a_release_reaches_a_member_that_failed_meanwhile() {
    let f = Fixture::new(3);
    let claim = f.granted("a").await;
    f.fakes[2].fail(true);
    f.quorum.release(&claim, WITHIN).await.unwrap();
    settle().await;
    f.fakes[2].fail(false);
    tokio::time::sleep(WITHIN).await;
    assert_eq!(f.value_at(2).await, None);
}

#[test]
fn p3_the_lease_ends_with_the_majority() {
    let deadlines = [5, 9, 7].map(Moment::from_nanos);
    assert_eq!(lease(deadlines.into_iter(), 2), Moment::from_nanos(7));
}

#[test]
fn a_key_without_a_ttl_is_the_last_to_become_free() {
    let second = Duration::from_secs(1);
    let ttls = vec![None, Some(2 * second), Some(second)];
    assert_eq!(smallest(ttls.clone(), 1), Some(second));
    assert_eq!(smallest(ttls, 3), None);
}

#[tokio::test(start_paused = true)]
async fn a_look_tells_what_the_majority_has_and_whether_a_renewal_has_something_to_mend() {
    let f = Fixture::new(3);
    let claim = f.granted("a").await;
    let look = async || f.quorum.look(&claim, WITHIN).await;
    assert!(matches!(look().await, Ok(Look::Ours { until: Some(_) })));
    f.fakes[0].hold();
    let start = Instant::now();
    assert!(matches!(look().await, Ok(Look::Ours { until: Some(_) })));
    let waited = start.elapsed();
    assert!(waited < WITHIN / 10, "a silent one is not waited for");
    f.fakes[0].let_go();
    let forget = async |fake: usize| {
        let memory = &f.fakes[fake].memory;
        assert!(memory.force_release(&f.key, WITHIN).await.unwrap());
    };
    forget(0).await;
    assert!(matches!(look().await, Ok(Look::Ours { until: None })));
    forget(1).await;
    assert!(matches!(look().await, Ok(Look::Removed)));
    settle().await;
    assert_eq!(f.value_at(2).await, None, "the minority's key is undone");
    assert_eq!(f.fakes[2].calls("renew"), 0);
}

/// Of several keys whose heartbeats meet one outage.
#[tokio::test(start_paused = true)]
async fn a_queue_that_fails_many_at_once_rests_as_for_one() {
    let f = Fixture::new(3);
    f.fakes[0].hold();
    let (one, other) = (f.claim("a"), f.claim("b"));
    let beat = |claim| f.quorum.enqueue(claim, Fences::floor(1), WITHIN);
    let (one, other) = tokio::join!(beat(&one), beat(&other));
    assert!(one.is_err() && other.is_err());
    assert!(!f.quorum.servers[0].may_queue(Instant::now()));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(f.quorum.servers[0].may_queue(Instant::now()));
}
