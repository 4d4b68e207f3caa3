-- Login roles, one per service, without passwords: where PostgreSQL asks for one, the operator sets it.
-- heliograph_owner owns every schema; services own nothing, so that no service can lift its own limits.
do $$
declare
  role text;
begin
  perform pg_advisory_xact_lock(hashtext('heliograph roles'));  -- roles belong to the server: other databases may be migrating too
  if not exists (select from pg_roles where rolname = 'heliograph_owner') then
    create role heliograph_owner nologin;
  end if;
  foreach role in array array['heliograph_registry', 'heliograph_relay', 'heliograph_sync', 'heliograph_ledger', 'heliograph_purge'] loop
    if not exists (select from pg_roles where rolname = role) then
      execute format('create role %I login', role);
    end if;
  end loop;
end $$;

do $$
begin
  execute format('grant create on database %I to heliograph_owner', current_database());
  execute format('grant heliograph_owner to %I', current_user);
end $$;
