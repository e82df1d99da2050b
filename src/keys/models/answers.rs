//! What Redis tells and answers.

use super::*;

/// K9: the heir's lease is extended by the answer, or asked about again.
#[test]
fn p9_an_answer_that_comes_as_the_lease_is_handed_on_is_the_heirs() {
    loom::model(|| {
        let f = Fixture::new();
        let (holder, heir) = (f.hold(), f.behind());
        f.clock.advance(Duration::from_millis(50));
        let Some((state, Due::Ask(question))) = f.keys.due(f.clock.now(), SECOND).pop() else {
            panic!("a look is due");
        };
        let driver = spawn(&f, move |f| {
            let look = Look::Ours { until: None };
            assert!(f.keys.answer_look(&state, &question, look).is_none());
        });
        drop(holder);
        let heir = take_lease(heir);
        driver.join().unwrap();
        // The look found too short a life.
        assert!(matches!(f.due()[..], [Due::Ask(_)]), "K9");
        drop(heir);
        f.assert_nothing_left();
    });
}

/// P11: a grant is found by the waiter, or given to the driver.
#[test]
fn p10_a_grant_that_comes_as_its_waiter_leaves_is_passed_on() {
    loom::model(|| {
        let f = Fixture::new();
        let user = f.first();
        user.queue("v");
        let pusher = spawn(&f, |f| f.grant("v"));
        let waiter = Arc::clone(&user.waiter);
        drop(user);
        pusher.join().unwrap();
        let is_unwanted = !f.keys.take_unwanted().is_empty();
        // What its waiter had is passed on by its own `leave` in Redis.
        assert!(is_unwanted != waiter.has_grant(), "P10");
    });
}

/// P11: whoever is told something while it is polled is polled again.
#[test]
fn p11_a_grant_that_comes_as_its_waiter_is_polled_wakes_it() {
    loom::model(|| {
        let f = Fixture::new();
        let user = f.first();
        user.queue("v");
        let pusher = spawn(&f, |f| f.grant("v"));
        // A grant that is missed would be a deadlock, which the model reports.
        let granted = block_on(std::future::poll_fn(|context| {
            assert!(user.waiter.note_poll(context));
            user.waiter.poll_news(None)
        }));
        assert!(granted.is_ok());
        pusher.join().unwrap();
    });
}
