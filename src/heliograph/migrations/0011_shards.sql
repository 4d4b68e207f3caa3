-- How many shards the versions stream has is chosen when a database is made (`heliograph.shards`, set by `heliograph migrate`), and is part of the
-- log from then on: an environment's shard follows from it, and so does where readers look for its events. Receipts keep their own sixteen.

set local role heliograph_owner;

do $$
declare
    v_shards int := coalesce(nullif(current_setting('heliograph.shards', true), ''), '16')::int;
begin
    if v_shards <> 16 and not exists (select from eventlog.event_shard where next_position > 1) then
        delete from eventlog.event_shard where shard >= v_shards;
        insert into eventlog.event_shard (shard) select generate_series(0, v_shards - 1) on conflict do nothing;
    end if;
end $$;

create function eventlog.refuse_other_shards() returns trigger language plpgsql as $$
begin
    raise exception 'the number of shards is part of the log; it was chosen when the database was made' using errcode = 'restrict_violation';
end $$;
create trigger shards_stay before insert or delete or truncate on eventlog.event_shard
    for each statement execute function eventlog.refuse_other_shards();

reset role;
