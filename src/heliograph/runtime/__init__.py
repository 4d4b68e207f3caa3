"""What every process needs: settings, PostgreSQL, migrations, HTTP, supervision."""
