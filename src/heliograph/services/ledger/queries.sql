-- Every statement of the ledger, by name. Writers take whole batches as arrays: one round trip per kind, however many rows.

-- name: try_lead
-- One ledger takes in the log at a time; the lock lives as long as the connection that also does the writing.
select pg_try_advisory_lock(hashtext('heliograph.ledger'));

-- name: marks
select identity, marks from ledger.mark where stream = $1;

-- name: set_mark
insert into ledger.mark (stream, identity, marks) values ($1, $2, $3::jsonb)
on conflict (stream) do update set identity = excluded.identity, marks = excluded.marks, updated_at = now();

-- name: not_flushed
-- Of this transaction only. Whoever has its marks has its effects, and what a crash takes away is read from the log again.
select set_config('synchronous_commit', 'off', true);

-- name: add_subscriptions
insert into ledger.subscription (connection, subscription, namespace, environment, instance, incarnation, node, region,
                                 fingerprint, view, since_us, runs_epoch, runs_number, runs_version, runs_since_us)
select connection, subscription, namespace, environment, instance, incarnation, node, region, fingerprint::jsonb,
       array(select jsonb_array_elements_text(view::jsonb)), since_us, runs_epoch, runs_number, runs_version,
       case when runs_version is not null then since_us end
  from unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::text[], $8::text[], $9::text[],
              $10::text[], $11::bigint[], $12::bigint[], $13::bigint[], $14::text[])
       as n(connection, subscription, namespace, environment, instance, incarnation, node, region, fingerprint, view, since_us,
            runs_epoch, runs_number, runs_version)
on conflict (connection, subscription) do nothing;

-- name: keep_schemas
-- Touched again after an hour only: thousands of instances declare the same few texts.
insert into ledger.declared_schema as known (digest, body) select * from unnest($1::text[], $2::text[])
on conflict (digest) do update set seen_at = now() where known.seen_at < now() - interval '1 hour';

-- name: note_declared
update ledger.subscription s set declares = d.declares::jsonb
  from unnest($1::text[], $2::bigint[], $3::text[]) as d(connection, subscription, declares)
 where s.connection = d.connection and s.subscription = d.subscription;

-- name: declared
-- What live subscriptions of an environment declare for these configs: each schema once, with who declares it.
select c.config, d.body as schema, count(distinct s.instance) as instances,
       (array_agg(distinct s.instance order by s.instance))[1:$5] as sample,
       (array_agg(distinct s.fingerprint ->> 'app'))[1:$5] as apps
  from unnest($3::text[]) as c(config)
  join ledger.subscription s on s.namespace = $1 and s.environment = $2 and s.until_us is null and s.declares <> '{}'
   and s.declares ? c.config
  left join ledger.node n using (node)
  join ledger.declared_schema d on d.digest = s.declares ->> c.config
 where not coalesce(n.lost, false)
 group by c.config, d.digest, d.body order by c.config, instances desc, d.digest limit $4;

-- name: declared_names
-- Configs of an environment for which live subscriptions declare a schema.
select distinct config from ledger.subscription s
  left join ledger.node n using (node)
  cross join lateral jsonb_object_keys(s.declares) config
 where s.namespace = $1 and s.environment = $2 and s.until_us is null and s.declares <> '{}' and not coalesce(n.lost, false)
 order by config limit $3;

-- name: forget_schemas
select ledger.forget_schemas(to_timestamp($1::bigint / 1e6));

-- name: end_replaced
-- An instance has one live connection per environment: the newest ends the older ones at the moment it came.
update ledger.subscription older
   set until_us = newer.since_us, ended = 'replaced'
  from (select o.connection, o.subscription, min(n.since_us) as since_us
          from (select distinct * from unnest($1::text[], $2::text[], $3::text[])) as touched(namespace, environment, instance)
          join ledger.subscription o using (namespace, environment, instance)
          join ledger.subscription n using (namespace, environment, instance)
         where n.connection <> o.connection and (n.incarnation, n.since_us) > (o.incarnation, o.since_us)
           and (o.until_us is null or o.until_us > n.since_us)
         group by 1, 2) newer
 where older.connection = newer.connection and older.subscription = newer.subscription;

-- name: end_subscriptions
-- The first goodbye counts, and any before what was assumed of a forgotten node, unless another connection of the instance came first.
update ledger.subscription s
   set ended = e.reason,
       until_us = case when s.ended is distinct from 'node lost' then least(s.until_us, e.until_us)
                  else least(e.until_us, (select min(n.since_us) from ledger.subscription n
                                           where n.namespace = s.namespace and n.environment = s.environment and n.instance = s.instance
                                             and n.connection <> s.connection and (n.incarnation, n.since_us) > (s.incarnation, s.since_us)))
                  end
  from unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[]) as e(connection, subscription, until_us, reason)
 where s.connection = e.connection and s.subscription = e.subscription 
   and (s.until_us is null or s.until_us > e.until_us or s.ended = 'node lost');

-- name: store_answers
-- Keeps the better of two answers (the same order as answers.better). What comes after the close changes nothing that was there: it is kept
-- beside that, when it is better. A version that is known by name only was never closed: its story may come yet.
with said as materialized (
    select n.*, (to_timestamp(n.received_at_us / 1e6) at time zone 'UTC')::date as day,
           coalesce(v.closed_at_us is not null and v.outcome <> 'unseen', false) as late
      from unnest($1::text[], $2::text[], $3::bigint[], $4::ledger.state[], $5::text[], $6::bigint[], $7::bigint[], $8::text[], $9::text[],
                  $10::text[])
           as n(version, instance, subscription, state, reason, applied_at_us, received_at_us, connection, node, trace)
      left join ledger.version v on v.version = n.version
), after_the_close as (
    insert into ledger.late_receipt as known
           (version, instance, subscription, day, state, reason, applied_at_us, received_at_us, connection, node, trace)
    select s.version, s.instance, s.subscription, s.day, s.state, s.reason, s.applied_at_us, s.received_at_us, s.connection, s.node, s.trace
      from said s
      left join lateral (select r.state, r.received_at_us from ledger.receipt r
                          where r.version = s.version and r.instance = s.instance and r.subscription = s.subscription and r.day = s.day
                          limit 1) published on true
     where s.late and (published.state is null or (s.state, -s.received_at_us) > (published.state, -published.received_at_us))
    on conflict (version, instance, subscription) do update
       set day = excluded.day, state = excluded.state, reason = excluded.reason, applied_at_us = excluded.applied_at_us,
           received_at_us = excluded.received_at_us, connection = excluded.connection, node = excluded.node, trace = excluded.trace
     where (excluded.state, -excluded.received_at_us, -excluded.applied_at_us, coalesce(excluded.reason, '') collate "C")
         > (known.state, -known.received_at_us, -known.applied_at_us, coalesce(known.reason, '') collate "C")
)
insert into ledger.receipt as known
       (version, instance, subscription, day, state, reason, applied_at_us, received_at_us, connection, node, trace, late)
select version, instance, subscription, day, state, reason, applied_at_us, received_at_us, connection, node, trace, false
  from said where not late
on conflict (version, instance, subscription, day) do update
   set state = excluded.state, reason = excluded.reason, applied_at_us = excluded.applied_at_us,
       received_at_us = excluded.received_at_us, connection = excluded.connection, node = excluded.node, trace = excluded.trace
 where (excluded.state, -excluded.received_at_us, -excluded.applied_at_us, coalesce(excluded.reason, '') collate "C")
     > (known.state, -known.received_at_us, -known.applied_at_us, coalesce(known.reason, '') collate "C");

-- name: note_answers
-- Its latest receipt, and what it runs: that grows within one connection, and a new connection starts from what it says to have.
update ledger.subscription s
   set runs_epoch = case when r.runs_further then r.runs_epoch else s.runs_epoch end,
       runs_number = case when r.runs_further then r.runs_number else s.runs_number end,
       runs_version = case when r.runs_further then r.runs_version else s.runs_version end,
       runs_since_us = case when r.runs_further then r.runs_since_us else s.runs_since_us end,
       answered_number = case when r.is_later then r.number else s.answered_number end,
       answered_state = case when r.is_later then r.state else s.answered_state end,
       answered_reason = case when r.is_later then r.reason else s.answered_reason end,
       answered_at_us = case when r.is_later then r.at_us else s.answered_at_us end
  from (select n.*, known.ctid as place,
               n.runs_number is not null
               and coalesce((n.runs_epoch, n.runs_number, -n.runs_since_us) > (known.runs_epoch, known.runs_number, -known.runs_since_us), true)
                   as runs_further,
               coalesce(n.at_us > known.answered_at_us, true) as is_later
          from unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[], $5::text[], $6::bigint[], $7::bigint[], $8::bigint[],
                      $9::text[], $10::bigint[])
               as n(connection, subscription, number, state, reason, at_us, runs_epoch, runs_number, runs_version, runs_since_us)
          join ledger.subscription known using (connection, subscription)) r
 where s.ctid = r.place;

-- name: store_fan_outs
insert into ledger.fan_out (namespace, environment, epoch, number, node, recipients, logged_at_us, started_at_us, done_at_us)
select * from unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::text[], $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[])
on conflict do nothing;

-- name: note_nodes
insert into ledger.node as known (node, region, connections, alive_at_us, lost)
select * from unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::boolean[])
on conflict (node) do update
   set region = excluded.region, connections = excluded.connections, alive_at_us = excluded.alive_at_us, lost = excluded.lost
 where excluded.alive_at_us >= known.alive_at_us;

-- name: lose_nodes
insert into ledger.node (node, region, connections, alive_at_us, lost)
select node, '', 0, $2, true from unnest($1::text[]) node
on conflict (node) do update set lost = true;

-- name: forget_nodes
-- Instances of a node that has been lost for long, and did not come back elsewhere, have gone.
update ledger.subscription s set until_us = $2, ended = 'node lost'
  from ledger.node n
 where n.node = s.node and n.lost and n.alive_at_us < $1 and s.until_us is null
returning s.connection, s.subscription, s.namespace, s.environment, s.instance, s.node;

-- name: revive_subscriptions
-- Before any other news. Of a lost node that is alive: its clients have been on it all the time, but for those who came back elsewhere. What it
-- kept to tell, goodbyes too, it tells yet. gone_us: since when they passed for gone.
with back as (
    select e.node from unnest($1::text[], $2::bigint[]) as e(node, alive_at_us)
      join ledger.node n on n.node = e.node and n.lost and n.alive_at_us <= e.alive_at_us
), gone as (
    select o.connection, o.subscription, o.until_us as gone_us
      from back join ledger.subscription o on o.node = back.node and o.ended = 'node lost'
     where not exists (select from ledger.subscription n
                        where n.namespace = o.namespace and n.environment = o.environment and n.instance = o.instance
                          and n.connection <> o.connection and (n.incarnation, n.since_us) > (o.incarnation, o.since_us))
)
update ledger.subscription s set until_us = null, ended = null
  from gone where s.connection = gone.connection and s.subscription = gone.subscription
returning s.connection, s.subscription, namespace, environment, instance, incarnation, node, region, fingerprint, since_us, until_us, ended,
          runs_epoch, runs_number, gone_us;

-- name: add_versions
-- Returns those that are new, or were only known by name (the latter: there was a row).
insert into ledger.version as known (namespace, environment, epoch, number, version, received_at_us, committed_at_us, trace)
select * from unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::text[], $6::bigint[], $7::bigint[], $8::text[])
on conflict (version) do update
   set received_at_us = excluded.received_at_us, committed_at_us = excluded.committed_at_us, trace = excluded.trace,
       closed_at_us = null, outcome = null
 where known.outcome = 'unseen'
returning version, xmax <> 0 as known;

-- name: not_late
-- Of a story that begins after all, no answer was late.
update ledger.receipt set late = false where version = any($1::text[]) and late;

-- name: add_unseen
-- What an environment is at, after records of the log were missed: known by name, without a story.
insert into ledger.version (namespace, environment, epoch, number, version, received_at_us, committed_at_us, closed_at_us, outcome)
select *, committed_at_us, committed_at_us, 'unseen'
  from unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::text[], $6::bigint[])
       as v(namespace, environment, epoch, number, version, committed_at_us)
on conflict do nothing;

-- name: set_heads
insert into ledger.head as known (namespace, environment, epoch, number, version, issued_at, payload)
select * from unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::text[], $6::text[], $7::text[])
on conflict (namespace, environment) do update
   set epoch = excluded.epoch, number = excluded.number, version = excluded.version, issued_at = excluded.issued_at,
       payload = excluded.payload
 where (excluded.epoch, excluded.number, excluded.issued_at) > (known.epoch, known.number, known.issued_at);

-- name: answers_of
select distinct on (version, instance, subscription) version, instance, subscription, state::text, reason, applied_at_us, received_at_us
  from ledger.receipt where version = any($1::text[])
 order by version, instance, subscription, state desc, received_at_us;

-- name: hops_of
select v.version, f.node, f.recipients, f.logged_at_us, f.started_at_us, f.done_at_us
  from ledger.version v join ledger.fan_out f using (namespace, environment, epoch, number)
 where v.version = any($1::text[]);

-- name: nodes
select node, alive_at_us, lost from ledger.node;

-- name: open_versions
select namespace, environment, epoch, number, version, received_at_us, committed_at_us
  from ledger.version where closed_at_us is null order by namespace, environment, epoch, number;

-- name: version_of
select namespace, environment, epoch, number, version, received_at_us, committed_at_us from ledger.version where version = $1;

-- name: subscriptions_of
-- Of one environment, as `subscriptions`.
select connection, subscription, namespace, environment, instance, incarnation, node, region, fingerprint, since_us, until_us, ended,
       runs_epoch, runs_number
  from ledger.subscription where namespace = $1 and environment = $2 and (until_us is null or until_us >= $3)
 order by incarnation, since_us;

-- name: subscriptions
-- In the order in which they came, so that the newest connection of an instance is told last.
select connection, subscription, namespace, environment, instance, incarnation, node, region, fingerprint, since_us, until_us, ended,
       runs_epoch, runs_number
  from ledger.subscription where until_us is null or until_us >= $1
 order by incarnation, since_us;

-- name: lines_of
-- What the digest of a closed propagation is made from.
select distinct on (instance collate "C", subscription) instance, subscription, state::text, reason, applied_at_us, received_at_us
  from ledger.receipt where version = $1 and not late
 order by instance collate "C", subscription, state desc, received_at_us;

-- name: close
update ledger.version
   set closed_at_us = $2, outcome = $3, report = $4::jsonb, digest = $5, audit = 'pending', audit_due_us = $2
 where version = $1 and closed_at_us is null;

-- name: audits_due
select version, namespace, environment, report, audit_attempts, trace
  from ledger.version where audit = 'pending' and audit_due_us <= $1 order by audit_due_us limit $2;

-- name: audit_posted
-- And its dead letter, if an operator had it told again, is told.
with posted as (update ledger.version set audit = 'posted' where version = $1 returning version)
update eventlog.dead_letter d set state = 'replayed', settled_at = now()
  from posted where d.consumer = 'ledger' and d.stream = 'deliveries' and d.key = posted.version and d.state = 'replaying';

-- name: audit_failed
update ledger.version set audit_attempts = audit_attempts + 1, audit_due_us = $2 where version = $1;

-- name: audit_dead
-- One letter for each report: an operator's replay that fails is the same letter again. Answers whether it was one.
with dead as (
    update ledger.version set audit = 'dead', audit_attempts = audit_attempts + 1 where version = $1 and audit = 'pending'
    returning version, namespace, environment, number, audit_attempts
), again as (
    update eventlog.dead_letter d
       set state = 'waiting', reason = $3, attempts = d.attempts + dead.audit_attempts, failed_at = now(), settled_at = null, settled_by = null
      from dead where d.consumer = 'ledger' and d.stream = 'deliveries' and d.key = dead.version and d.state = 'replaying'
    returning d.id
), fresh as (
    insert into eventlog.dead_letter (stream, consumer, key, body, reason, attempts, trace, namespace, environment, number, version)
    select 'deliveries', 'ledger', version, $2, $3, audit_attempts, $4, namespace, environment, number, version from dead
     where not exists (select from again)
)
select exists (select from again);

-- name: audit_again
-- What it was: dead (and is pending now), pending, posted; no row when the report is not kept any more.
with again as (update ledger.version set audit = 'pending', audit_attempts = 0, audit_due_us = $2 where version = $1 and audit = 'dead')
select audit from ledger.version where version = $1 and audit is not null;

-- name: to_take_in_again
-- What an operator has asked for, oldest first; without reports that are on their way to the audit trail, which settle their letters themselves.
select id from eventlog.dead_letter d
 where consumer = 'ledger' and state = 'replaying'
   and not (stream = 'deliveries' and exists (select from ledger.version v where v.version = d.key and v.audit = 'pending'))
 order by id limit $1;

-- name: set_rejections_aside
select ledger.set_rejections_aside($1, $2, $3, $4, $5, $6, $7, $8, $9, $10);

-- name: version_at
-- Of the latest epoch when several share the number; $4: only the one with that id.
select version, closed_at_us, report from ledger.version
 where namespace = $1 and environment = $2 and number = $3 and $4 in ('', version) order by epoch desc limit 1;

-- name: head_of
select payload from ledger.head where namespace = $1 and environment = $2;

-- name: receipts_page
select * from (
    select distinct on (instance collate "C", subscription) instance, subscription, state::text, reason, applied_at_us,
           received_at_us, connection, node, late
      from ledger.told
     where version = $1 and (instance collate "C", subscription) > ($2, $3)
     order by instance collate "C", subscription, late, state desc, received_at_us
) r where $4::text is null or state = $4
 order by instance collate "C", subscription limit $5;

-- name: instances_page
-- The newest connection of each instance, with its subscriptions there. Ended ones are shown only when none is live.
with newest as (
    select distinct on (instance) instance, connection
      from ledger.subscription
     where namespace = $1 and environment = $2 and instance > $3 and (until_us is null or until_us >= $4)
     order by instance, incarnation desc, since_us desc
     limit $5
)
select s.*, coalesce(n.lost, false) as node_lost
  from newest
  join ledger.subscription s using (instance, connection)
  left join ledger.node n using (node)
 where s.namespace = $1 and s.environment = $2
   and (s.until_us is null or not exists (select from ledger.subscription o
                                           where o.connection = s.connection and o.namespace = $1 and o.environment = $2
                                             and o.until_us is null))
 order by s.instance, s.subscription;

-- name: beginning
select at_us from ledger.beginning;

-- name: instances_then
-- Of each instance that was subscribed at $3: its newest connection then, with what each of its subscriptions had applied last. A
-- connection knows only what it runs at its end, so that an earlier answer comes from receipts: those of the latest $7 versions that
-- were committed by then, newest first.
with newest as (
    select distinct on (instance) instance, connection
      from ledger.subscription
     where namespace = $1 and environment = $2 and instance > $4 and ($5 = '' or instance = $5)
       and since_us <= $3 and (until_us is null or until_us > $3)
     order by instance, incarnation desc, since_us desc
     limit $6
), committed as materialized (
    select epoch, number, version, committed_at_us from ledger.version
     where namespace = $1 and environment = $2 and committed_at_us <= $3
     order by epoch desc, number desc limit $7
)
select s.instance, s.subscription, s.connection, s.incarnation, s.node, s.region, s.fingerprint, s.view, s.since_us, s.until_us,
       coalesce(ran.epoch, ended.epoch) as ran_epoch, coalesce(ran.number, ended.number) as ran_number,
       coalesce(ran.version, ended.version) as ran_version, coalesce(ran.at_us, ended.at_us) as ran_since_us
  from newest
  join ledger.subscription s using (instance, connection)
  left join lateral (
      select c.epoch, c.number, c.version, r.applied_at_us as at_us
        from committed c join ledger.receipt r
          on r.version = c.version and r.instance = s.instance and r.subscription = s.subscription
         and r.state in ('applied', 'unaffected') and r.applied_at_us <= $3
         and r.day >= (to_timestamp(c.committed_at_us / 1e6) at time zone 'UTC')::date - 1
       union all
      select c.epoch, c.number, c.version, r.applied_at_us
        from committed c join ledger.late_receipt r
          on r.version = c.version and r.instance = s.instance and r.subscription = s.subscription
         and r.state in ('applied', 'unaffected') and r.applied_at_us <= $3
       order by epoch desc, number desc, at_us limit 1) ran on true
  left join lateral (
      select s.runs_epoch as epoch, s.runs_number as number, s.runs_version as version, s.runs_since_us as at_us
       where s.runs_since_us <= $3) ended on ran.version is null
 where s.namespace = $1 and s.environment = $2 and s.since_us <= $3 and (s.until_us is null or s.until_us > $3)
 order by s.instance, s.subscription;

-- name: drift_page
-- Subscriptions of the newest connection of each instance that do not run what the head says ($11: or all of them, when only
-- the rollout knows), and have had the time to ($10). missed_at_us: when the first version that it lacks was committed.
with newest as (
    select distinct on (instance) instance, connection
      from ledger.subscription
     where namespace = $1 and environment = $2 and instance >= $3 and (until_us is null or until_us >= $5)
     order by instance, incarnation desc, since_us desc
)
select s.*, coalesce(n.lost, false) as node_lost, missed.committed_at_us as missed_at_us
  from newest
  join ledger.subscription s using (instance, connection)
  left join ledger.node n using (node)
  left join lateral (
      select v.committed_at_us from ledger.version v
       where v.namespace = $1 and v.environment = $2 and s.runs_number is not null
         and (v.epoch, v.number) > (s.runs_epoch, s.runs_number)
       order by v.epoch, v.number limit 1) missed on true
 where s.namespace = $1 and s.environment = $2 and (s.instance, s.subscription) > ($3, $4)
   and ($11 or (s.runs_epoch, s.runs_number, s.runs_version) is distinct from ($7::bigint, $8::bigint, $9::text))
   and greatest(missed.committed_at_us, case when s.until_us is null or s.runs_number is null then s.since_us end, 0) <= $10
   and (s.until_us is null or not exists (select from ledger.subscription o
                                           where o.connection = s.connection and o.namespace = $1 and o.environment = $2
                                             and o.until_us is null))
 order by s.instance, s.subscription
 limit $6;

-- name: drift_count
-- For the gauge: live subscriptions, in all environments, that have not run their head for longer than the grace period.
select count(distinct s.instance)
  from ledger.subscription s
  join ledger.head h using (namespace, environment)
  join ledger.version v on v.version = h.version
 where s.until_us is null and (s.runs_epoch, s.runs_number, s.runs_version) is distinct from (h.epoch, h.number, h.version)
   and greatest(v.committed_at_us, s.since_us) <= $1;

-- name: prepare_days
select ledger.prepare_days($1);

-- name: retain
select ledger.retain($1, $2, $3);
